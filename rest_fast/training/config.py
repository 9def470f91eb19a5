"""Configuration of a training: one dataclass per stage, the paper's numbers as defaults, JSON round trip.

What the paper does not give (lengths, optimiser, averages) is marked D, as in ``docs/design.md``.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rest_fast.config import TEMPORAL, ConfigError, ConvVAEConfig, ModelConfig, preset
from rest_fast.config.validate import check_fields, require
from rest_fast.training.shards import FRAMES, encoder_of


@dataclass(frozen=True)
class Stage:
    """AdamW over a number of steps. ``batch`` clips make a step, over all processes and accumulated parts."""

    steps: int = 100_000  # D
    rate: float = 1e-5  # peak learning rate
    batch: int = 4  # the paper: 1 on each GPU, accumulated 4 times
    accumulate: int = 4
    warmup: int = 100  # D: steps
    constant: float = 1.0  # D: share of the steps before the rate falls to a fiftieth, as a cosine
    weight_decay: float = 0.0  # D
    clip: float = 1.0  # D: largest norm of a gradient
    ema: float = 0.999  # D: decay of the running average, which is what a stage hands on

    def __post_init__(self) -> None:
        where = type(self).__name__
        least = {1: "steps batch accumulate", 0: "warmup weight_decay"}
        check_fields(self, where, at_least=least, positive="rate clip")
        require(self.batch % self.accumulate == 0, f"{where}.batch", f"a multiple of {self.accumulate}", self.batch)
        require(0 <= self.ema < 1, f"{where}.ema", "a number in 0..1, 1 left out", self.ema)
        require(0 <= self.constant <= 1, f"{where}.constant", "a number in 0..1", self.constant)


@dataclass(frozen=True)
class VAEStage(Stage):
    """A VAE on pixels. REST takes LTX-Video's unchanged, so this stage is for a new VAE."""

    rate: float = 1e-4  # D
    pieces: int = 3  # D: latent frames of one training example
    kl: float = 1e-6  # D: weight of the divergence from a unit normal (conv)
    mixer: Stage = field(default_factory=lambda: Stage(rate=1e-3, weight_decay=0.01))  # D: basis only
    fit_clips: int = 700  # D: clips that the basis is fitted on

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "VAEStage", at_least={1: "pieces fit_clips", 0: "kl"})


@dataclass(frozen=True)
class SpeechStage(Stage):
    """SpeechAE pre-training: 10 MSE + 1 InfoNCE over frames (READ, appendix)."""

    rate: float = 1e-4
    reconstruction: float = 10.0
    contrastive: float = 1.0
    temperature: float = 0.1  # D
    labels: float = 0.0  # D: weight of a linear head that reads labels off the codes, where the data has them

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "SpeechStage", at_least={0: "reconstruction contrastive labels"}, positive="temperature")


@dataclass(frozen=True)
class TeacherStage(Stage):
    """The non-streaming teacher: all latent frames at once, flow matching."""


@dataclass(frozen=True)
class StudentStage(Stage):
    """The streaming student: chunk by chunk through the ID-Context cache, flow matching."""

    cache_gradient: bool = True  # D: whether a chunk's error reaches the context that it saw
    self_rollout: float = 0.0  # D: share of steps whose context is the student's own output (not in the paper)

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.self_rollout <= 1, "StudentStage.self_rollout", "a number in 0..1", self.self_rollout)


@dataclass(frozen=True)
class ASDStage(StudentStage):
    """Asynchronous Streaming Distillation: L_FM + 0.2 L_CON + 0.2 L_SMO against the frozen teacher."""

    contrastive: float = 0.2
    smooth: float = 0.2
    temperature: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "ASDStage", at_least={0: "contrastive smooth"}, positive="temperature")


@dataclass(frozen=True)
class CausalDecoderStage(Stage):
    """A causal decoder, distilled from a VAE's own. All numbers are D, since nobody has published any."""

    steps: int = 20_000
    rate: float = 5e-5
    start: Literal["folded", "unchanged"] = "folded"  # how the weights for the later frame are used; see causal_copy
    latents: int = 10  # latent frames of one training example
    piece: int = 4  # latent frames that are decoded at once, at most: bounds the memory
    truth: float = 0.1  # weight of the error to the clip's own frames, added to that to the teacher's
    sampled: bool = False  # latents drawn from the posterior rather than its mean

    def __post_init__(self) -> None:
        super().__post_init__()
        check_fields(self, "CausalDecoderStage", at_least={2: "latents", 1: "piece", 0: "truth"})
        most = 1 + (FRAMES - 1) // TEMPORAL
        require(self.latents <= most, "CausalDecoderStage.latents", f"at most a clip's {most}", self.latents)


@dataclass(frozen=True)
class Corruption:
    """What training drops from clips. Its noise is CANS with the model's ``sampling.train_mu`` and ``train_sigma``."""

    reference: float = 0.1  # share of clips that lose the reference only
    audio: float = 0.1  # share that loses the sound only
    both: float = 0.1  # D: share that loses both, since joint guidance needs that branch trained
    synchronous: float = 0.5  # share in which all chunks have one timestep ("motion prior dropout")
    mouth: float = 1.0  # D: how often tokens of the lower face count in L_FM

    def __post_init__(self) -> None:
        check_fields(self, "corruption", positive="mouth")
        for name in ("reference", "audio", "both", "synchronous"):
            value = getattr(self, name)
            require(0 <= value <= 1, f"corruption.{name}", "a number in 0..1", value)
        shares = self.reference + self.audio + self.both
        require(shares <= 1, "corruption", "shares of reference, audio and both of at most 1 together", shares)


@dataclass(frozen=True)
class TrainingConfig:
    """Everything that ``rest-fast train`` does with a folder of prepared clips."""

    model: ModelConfig
    vae: VAEStage = field(default_factory=VAEStage)
    speech: SpeechStage = field(default_factory=SpeechStage)
    teacher: TeacherStage = field(default_factory=TeacherStage)
    student: StudentStage = field(default_factory=StudentStage)
    asd: ASDStage = field(default_factory=ASDStage)
    corruption: Corruption = field(default_factory=Corruption)
    causal_decoder: CausalDecoderStage = field(default_factory=CausalDecoderStage)  # a stage outside of the chain
    seed: int = 0
    precision: Literal["bf16", "fp32"] = "bf16"  # of the computation; weights and averages stay fp32
    parallel: Literal["replicate", "shard"] = "replicate"  # DDP, or FSDP2 where a GPU does not hold the weights
    checkpointing: bool = False  # compute blocks twice rather than keep what they need
    report_every: int = 50  # steps
    save_every: int = 500
    sample_every: int = 0  # steps between sample videos; 0: none
    keep: int = 2  # states of a running stage that are kept

    def __post_init__(self) -> None:
        check_fields(self, "training", at_least={1: "report_every save_every keep", 0: "sample_every seed"})
        require(self.seed < 2**32, "training.seed", "less than 2^32", self.seed)
        chunk, latents = self.model.stream.chunk, (FRAMES - 1) // TEMPORAL
        require(latents % chunk == 0, "training.model.stream.chunk", f"a divisor of a clip's {latents} latents", chunk)

    def with_vae(self, found: ModelConfig | ConvVAEConfig) -> TrainingConfig:
        """A copy with the given VAE's configuration, if its encoder is that of the model's own; else unchanged.

        A preset cannot know which release is given, nor whether its decoder has been made causal.
        """
        given, own = found.vae if isinstance(found, ModelConfig) else found, self.model.vae
        if not isinstance(given, ConvVAEConfig) or encoder_of(given) != encoder_of(own):
            return self
        return dataclasses.replace(self, model=self.model.replace(vae=given))

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str) -> TrainingConfig:
        """``model`` may be a preset's name; parts and fields that are left out have their defaults."""
        try:
            raw = json.loads(text)
        except json.JSONDecodeError as e:
            raise ConfigError(f"training config is not JSON: {e}") from None
        require(isinstance(raw, dict), "training config", "an object", raw)
        model = raw.get("model")
        require(model is not None, "training config", "a field model (a preset's name or a model's config.json)", None)
        values = {**raw, "model": preset(model) if isinstance(model, str) else ModelConfig.from_json(json.dumps(model))}
        return build(cls, values, "training config")

    def replace(self, **changes: Any) -> TrainingConfig:
        """A copy with changed fields; ``asd__smooth=0.0`` reaches into a stage, ``model__stream__sink`` deeper."""
        own: dict[str, Any] = {}
        for key, value in changes.items():
            part, _, name = key.partition("__")
            if not name:
                own[key] = value
                continue
            base = own.get(part, getattr(self, part))
            own[part] = base.replace(**{name: value}) if part == "model" else dataclasses.replace(base, **{name: value})
        return dataclasses.replace(self, **own)


def build(base: Any, values: Any, where: str) -> Any:
    """A dataclass made of its defaults and JSON values; or a copy of an instance (the default of a part) with them."""
    require(isinstance(values, dict), where, "an object", values)
    fields = {f.name: f for f in dataclasses.fields(base)}
    unknown = sorted(set(values) - set(fields))
    require(not unknown, where, f"fields {sorted(fields)}", unknown)
    parsed = {}
    for name, value in values.items():
        default = fields[name].default_factory
        nested = default is not dataclasses.MISSING and dataclasses.is_dataclass(part := default())
        parsed[name] = build(part, value, f"{where}.{name}") if nested else value
    return base(**parsed) if isinstance(base, type) else dataclasses.replace(base, **parsed)


def read_config(source: str, changes: Sequence[str] = ()) -> TrainingConfig:
    """A preset's name or a JSON file, with changes such as ``asd.smooth=0.1`` or ``model.stream.sink=false``."""
    if source in PRESETS:
        config = training_preset(source)
    else:
        path = Path(source)
        if not path.is_file():
            raise ConfigError(f"training config: expected a file or one of {sorted(PRESETS)}, got {source!r}")
        try:
            config = TrainingConfig.from_json(path.read_text())
        except (ConfigError, UnicodeDecodeError) as e:
            raise ConfigError(f"{path}: {e}") from None
    raw = json.loads(config.to_json())
    for change in changes:
        where, equals, text = change.partition("=")
        part: Any = raw
        *outer, last = where.split(".")
        for name in outer:
            part = part.get(name) if isinstance(part, dict) else None
        fields = sorted(part) if isinstance(part, dict) else sorted(raw)
        require(bool(equals), "set", "PATH=VALUE", change)
        require(isinstance(part, dict) and last in part, f"set {where}", f"one of {fields}", last)
        try:
            part[last] = json.loads(text)
        except json.JSONDecodeError:
            part[last] = text
    return TrainingConfig.from_json(json.dumps(raw))


def _rest_512() -> TrainingConfig:
    """The paper's training: about 400 A100-hours, 46 GB at one clip on each GPU."""
    return TrainingConfig(preset("rest-512"), checkpointing=True)


def _demo() -> TrainingConfig:
    """The shipped model, on latents of motion: hours on two CPU cores. Its VAE has a training of its own."""
    once: dict[str, Any] = {"accumulate": 1, "weight_decay": 0.01, "ema": 0.998}
    return TrainingConfig(
        preset("demo"),
        speech=SpeechStage(2500, 1e-3, 8, constant=0.4, labels=10.0, **once),
        teacher=TeacherStage(5500, 1e-3, 8, constant=0.5, **once),
        student=StudentStage(2500, 5e-4, 8, constant=0.4, **once),
        asd=ASDStage(1000, 2e-4, 8, constant=0.4, **once),
        corruption=Corruption(0.05, 0.05, 0.1),  # a motion latent's cells stand for no place: none counts more
        save_every=200,
    )


def _drawn() -> TrainingConfig:
    """Drawn faces: hours on two CPU cores."""
    once: dict[str, Any] = {"accumulate": 1, "weight_decay": 0.01, "ema": 0.998}
    return TrainingConfig(
        preset("drawn"),
        vae=VAEStage(
            4400,
            2e-4,
            2,
            1,
            constant=0.4,
            ema=0.998,
            mixer=Stage(2600, 1e-3, 8, 1, constant=0.4, weight_decay=0.01, ema=0.998),
        ),
        speech=SpeechStage(2000, 1e-3, 8, constant=0.4, labels=10.0, **once),
        teacher=TeacherStage(5000, 1e-3, 8, constant=0.7, **once),
        student=StudentStage(3000, 5e-4, 8, constant=0.4, **once),
        asd=ASDStage(1500, 2e-4, 8, constant=0.4, **once),
        corruption=Corruption(0.05, 0.05, 0.1, mouth=3.0),
        save_every=200,
    )


def _toy() -> TrainingConfig:
    """For tests: seconds."""
    few: dict[str, Any] = {"steps": 4, "batch": 2, "accumulate": 1, "rate": 1e-3}
    return TrainingConfig(
        preset("toy"),
        VAEStage(**few, mixer=Stage(**few), fit_clips=4),
        SpeechStage(**few),
        TeacherStage(**few),
        StudentStage(**few),
        ASDStage(**few),
        causal_decoder=CausalDecoderStage(**few, latents=3, piece=2),
        report_every=2,
        save_every=2,
    )


PRESETS = {"demo": _demo, "drawn": _drawn, "rest-512": _rest_512, "toy": _toy}


def training_preset(name: str) -> TrainingConfig:
    """The training of a preset: ``demo``, ``drawn``, ``rest-512`` or ``toy``."""
    if name not in PRESETS:
        raise ConfigError(f"training preset: expected one of {sorted(PRESETS)}, got {name!r}")
    return PRESETS[name]()
