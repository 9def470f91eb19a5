"""Runs the stages in their order. Each makes a whole checkpoint, from which the next one starts.

OUT/config.json          the training's configuration; a folder belongs to one
OUT/STAGE/               config.json and model.safetensors: a checkpoint as ``rest_fast.load`` takes it
OUT/STAGE/log.jsonl      losses; tensorboard/ and samples/ beside it; state/ while the stage runs
OUT/latents/             the clips through the VAE, where the data was prepared without them
"""

from __future__ import annotations

import dataclasses
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch.distributed.tensor import DTensor

from rest_fast import checkpoint
from rest_fast.config import ConvVAEConfig, ModelConfig
from rest_fast.errors import TrainError as TrainError
from rest_fast.model import Model, find_checkpoint
from rest_fast.models.vae import to_tokens
from rest_fast.training import causal_decoder, states
from rest_fast.training import vae as vae_stage
from rest_fast.training.asd import ASD
from rest_fast.training.config import TrainingConfig, read_config
from rest_fast.training.distributed import World, full_tensor, join_world
from rest_fast.training.flow import FlowData, FlowStage, stage_seed
from rest_fast.training.loop import Trainer
from rest_fast.training.reports import write_sample
from rest_fast.training.shards import LEAD, MANIFEST, DataError, Manifest, Shards, encoder_fingerprint, write_shard
from rest_fast.training.speech import Speech, SpeechData
from rest_fast.training.stages import CAUSAL_DECODER, STAGES
from rest_fast.training.student import Student
from rest_fast.training.teacher import Teacher
from rest_fast.units import FRAME, RATE

log = logging.getLogger("rest_fast.training")

ALL = (*STAGES, CAUSAL_DECODER)
CONFIG = "config.json"
SAMPLE_SECONDS = 4
PARTS_OF_DIT = {"layout", "audio", "text_tokens", "text_channels"}  # a checkpoint may lack the parts they switch on


class Start(NamedTuple):
    """A checkpoint to take weights from: those whose names begin with ``prefix``."""

    folder: Path
    prefix: str = ""


def run(
    stage: str,
    config: TrainingConfig,
    data: Path,
    out: Path,
    *,
    init: str | Path | None = None,
    vae: str | Path | None = None,
    resume: bool = False,
    device: str = "auto",
) -> Path:
    """Run one stage, or ``all`` in order; the folder of the last checkpoint.

    Args:
        stage: one of :data:`STAGES`, ``all`` of them, or ``causal-decoder`` alone, which makes a VAE out of ``vae``.
        config: of model and training.
        data: folder of prepared clips (``rest-fast prepare-data``).
        out: folder of this training; see the module's docstring.
        init: checkpoint whose weights the first stage begins with, as far as it has them.
        vae: checkpoint of which only the VAE is taken. With one of the two ``all`` leaves the stage ``vae`` out.
        resume: go on with what ``out`` holds; without it a folder that holds this stage is refused.
        device: ``auto``, ``cpu`` or ``cuda``; under torchrun every process takes its own GPU.
    """
    if stage not in (*ALL, "all"):
        raise TrainError(f"train: stage: expected one of {', '.join(ALL)} or all, got {stage!r}")
    if stage == CAUSAL_DECODER:
        if init is not None or vae is None:
            raise TrainError(f"train {stage}: expected a VAE to begin with, --vae DIR and no --init; got {init or vae}")
        return _run_causal_decoder(config, data, out, vae, resume, device)
    if init is not None and vae is not None:
        raise TrainError("train: init, vae: expected one of them, got both")
    given = init if vae is None else vae
    start = None if given is None else Start(_whole(find_checkpoint(given)), "" if vae is None else "vae.")
    stages = [s for s in STAGES if not (s == "vae" and start)] if stage == "all" else [stage]
    clips = Shards(data, "train")
    config = without_labels(config, clips)
    if start is not None:
        config = config.with_vae(checkpoint.read_vae_config(start.folder))
    with join_world(device) as world:
        check(stages, config, clips, out, start, world)
        _claim(out, config, stages, resume, world)
        for name in stages:
            if not _done(out / name):
                begins = start if name == stages[0] or vae is not None else None
                _run_stage(name, config, clips, out, begins, world)
            elif world.first:
                log.info("%s: done already", name)
        world.barrier()
    return out / stages[-1]


def _run_causal_decoder(
    config: TrainingConfig, data: Path, out: Path, vae: str | Path, resume: bool, device: str
) -> Path:
    name, clips = CAUSAL_DECODER, Shards(data, "train")
    teacher = causal_decoder.read_teacher(vae)
    with join_world(device) as world:
        causal_decoder.check(teacher, config, clips, world)
        _claim(out, config, [name], resume, world)
        causal_decoder.claim(teacher, out / name, world)
        if not _done(out / name):
            causal_decoder.train(teacher, config, clips, out / name, world)
        elif world.first:
            log.info("%s: done already", name)
        world.barrier()
    return out / name


def _run_stage(name: str, config: TrainingConfig, clips: Shards, out: Path, start: Start | None, world: World) -> None:
    """Train one stage from the result of those before it."""
    torch.manual_seed(config.seed)  # so that new weights are the same in every process
    model = Model(config.model).requires_grad_(False)
    begins = _before(name, out, start)
    for begin in begins:
        trained_on = encoder_fingerprint(model.vae)
        read_parts(model, *begin)
        same_vae = STAGES[name].same_vae and begin != begins[0]
        if same_vae and encoder_fingerprint(model.vae) != trained_on:
            raise TrainError(f"{begin.folder}: expected the VAE whose latents {begins[0].folder} was trained on")
    folder = out / name
    if name == "vae":
        vae_stage.train(model, config, clips, folder, world, fresh=not begins)
    elif name == "speech":
        labels = clips.read("labels", [0]).shape[-1] if config.speech.labels else 0
        trained = Speech(model, config, labels)
        trained.encoder.requires_grad_(True)
        trainer = Trainer(trained, config.speech, config, folder, world)
        trainer.resume()
        trainer.run(SpeechData(config, clips))
    else:
        _train_flow(name, model, config, clips, out, world)
    result = whole_model(model, world)
    if result is not None:
        checkpoint.save(result, config.model, folder, torch.float32)
        for part in (folder, folder / "mixer"):
            shutil.rmtree(part / "state", ignore_errors=True)
    world.barrier()


def _train_flow(name: str, model: Model, config: TrainingConfig, clips: Shards, out: Path, world: World) -> None:
    latents = find_latents(model.to(world.device), clips, out, world)
    settings = getattr(config, name)
    stage: FlowStage
    if name == "asd":
        teacher = Model(config.model)
        checkpoint.read_weights(teacher, out / "teacher")
        stage = ASD(model, teacher, config)
    else:
        stage = {"teacher": Teacher, "student": Student}[name](model, config)
    for part in (model.dit, model.speech):
        part.requires_grad_(True)
    trainer = Trainer(stage, settings, config, out / name, world)
    trainer.resume()
    sample = sampler(model, clips, out / name, world) if STAGES[name].samples else None
    trainer.run(FlowData(config, clips, latents, settings.batch, stage_seed(config.seed, name)), sample)


def whole_model(model: Model, world: World) -> Model | None:
    """The model with all of its weights in the first process, None in the others. Called by all processes."""
    state = model.state_dict()
    if not any(isinstance(tensor, DTensor) for tensor in state.values()):
        return model if world.first else None
    result = Model(model.config).requires_grad_(False).to(model.device) if world.first else None
    for name, tensor in (result or model).state_dict().items():
        found = full_tensor(state[name])  # one at a time: the other processes drop it at once
        if result is not None:
            tensor.copy_(found)
    return result


def _before(name: str, out: Path, start: Start | None) -> list[Start]:
    """The checkpoints a stage begins with: that of the stage before and a given VAE, or a given ``init`` alone."""
    before = [*STAGES][: [*STAGES].index(name)][-1:]
    done = [Start(out / earlier) for earlier in before if _done(out / earlier)]
    if start is not None:
        return [*done, start] if start.prefix else [start]
    return done


def _expect(name: str, stages: list[str], out: Path, start: Start | None) -> None:
    """TrainError if a stage will lack what it begins with, even after the stages before it in this run."""

    def available(stage: str) -> bool:
        return stage in stages[: stages.index(name)] or _done(out / stage)

    needed, always = STAGES[name].needs, STAGES[name].always_needs
    if start is not None and not start.prefix and name == stages[0]:
        needed = always  # --init takes the place of the rest
    for stage in needed:
        if not available(stage):
            cure = "" if stage in always else ", or give --init MODEL, which has it"
            raise TrainError(f"{out / stage}: expected the result of the stage {stage}, found none; run it first{cure}")
    if name == "speech" and start is None and not available("vae"):
        raise TrainError(f"train {name}: expected {out / 'vae'} or --vae MODEL, whose VAE it keeps, found neither")


def without_labels(config: TrainingConfig, clips: Shards) -> TrainingConfig:
    """The configuration without the loss on lip labels, if the clips have no such labels (as recorded people)."""
    if config.speech.labels and "labels" not in clips.fields:
        log.info("%s: no labels of the lips, so speech.labels is 0", clips.folder)
        return config.replace(speech__labels=0.0)
    return config


def check(
    stages: list[str], config: TrainingConfig, clips: Shards, out: Path, start: Start | None, world: World
) -> None:
    """Check before hours of work all that can be checked: data, batches, and what each stage begins with."""
    clips.require_model(config.model)
    for name in stages:
        if _done(out / name):
            continue
        _expect(name, stages, out, start)
        clips.require(STAGES[name].data)
        settings = getattr(config, name)
        for part in (settings, *(getattr(settings, inner) for inner in STAGES[name].parts)):
            world.rows(part.batch, part.accumulate)
        if STAGES[name].latents and not {"video", "latents"} & clips.fields and not _done_latents(out, clips):
            raise TrainError(f"{clips.folder}: expected clips with latents or video, found {sorted(clips.fields)}")


def _done_latents(out: Path, clips: Shards) -> bool:
    folder = out / "latents"
    return (folder / MANIFEST).is_file() and Shards(folder).manifest.of == clips.digest


def kept(out: Path) -> list[str]:
    """What a training that was stopped has left in ``out``, in words."""
    found = []
    for name in ALL:
        if _done(out / name):
            found.append(f"{name} is whole")
        for folder in (out / name / "mixer", out / name):
            found += [f"{name} has the state of step {step}" for step in states.steps(folder / "state")[-1:]]
    return found


def _done(folder: Path) -> bool:
    """Whether a stage has left its checkpoint; ``config.json`` is written last."""
    return all((folder / name).is_file() for name in (checkpoint.WEIGHTS, checkpoint.CONFIG))


def _whole(folder: Path) -> Path:
    if not _done(folder):
        expected = f"expected a folder with {checkpoint.CONFIG} and {checkpoint.WEIGHTS}"
        raise TrainError(f"{folder}: {expected}, found no such files")
    return folder


def _claim(out: Path, config: TrainingConfig, stages: list[str], resume: bool, world: World) -> None:
    """Write this training's configuration into the folder, or refuse a folder that belongs to another training."""
    path = out / CONFIG
    begun = [name for name in ALL if (out / name).exists()]
    held = essence(read_config(str(path)), begun) if path.is_file() and begun else {}
    want = essence(config, begun)
    different = sorted(key for key in held if held[key] != want[key])
    if different:
        got = f"found another one in {', '.join(different)}"
        raise TrainError(f"{path}: expected this training's configuration, {got}; choose another --out")
    busy = [s for s in stages if (out / s).exists()]
    if busy and not resume:
        raise TrainError(f"{out}: expected no {', '.join(busy)} there yet; --resume goes on with it")
    world.barrier()
    if world.first:
        out.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(config.to_json() + "\n")
        partial.replace(path)
    world.barrier()


def read_parts(model: Model, folder: Path, prefix: str = "") -> None:
    """Copy those weights of a checkpoint that the model has, if both configurations mean the same by them.

    With the ``prefix`` "vae." the folder may hold a VAE alone. Weights that the checkpoint lacks are logged and stay as
    they were.

    Raises: TrainError for a tensor of another shape, for no common tensor, and for one that is missing under a
        ``prefix``, since half a network is of no use.
    """
    path = folder / checkpoint.WEIGHTS
    found = checkpoint.read_vae_config(folder) if prefix else checkpoint.read_config(folder)
    _compare(found, model.config, folder, prefix)
    bare = "" if isinstance(found, ModelConfig) else prefix  # the prefix that names in the file lack
    want = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(prefix)}
    with safe_open(path, framework="pt") as file:
        names = {bare + name for name in file.keys()}  # noqa: SIM118
        for name in sorted(names & set(want)):
            tensor = file.get_tensor(name.removeprefix(bare))
            if tensor.shape != want[name].shape:
                shapes = f"expected shape {list(want[name].shape)}, got {list(tensor.shape)}"
                raise TrainError(f"{path}: {name}: {shapes}; a checkpoint of another configuration")
            want[name].copy_(tensor)
    missing = sorted(set(want) - names)
    if not names & set(want) or (prefix and missing):
        raise TrainError(f"{path}: expected weights of this model, found {len(missing)} missing: {missing[0]}, ...")
    if missing:
        log.info("%s: %d tensors are not in it and begin anew: %s, ...", folder, len(missing), missing[0])


def _compare(found: ModelConfig | ConvVAEConfig, want: ModelConfig, folder: Path, prefix: str) -> None:
    """Compare configurations: heads, frequencies and sizes of windows cannot be seen in the shapes of tensors."""
    parts = ("vae",) if prefix else ("vae", "speech", "dit")
    for name in parts:
        one, other = (dataclasses.asdict(getattr(config, name, config)) for config in (found, want))
        apart = sorted(k for k in {*one, *other} - PARTS_OF_DIT if one.get(k) != other.get(k))
        if apart:
            pairs = ", ".join(f"{name}.{k} {other.get(k)} (got {one.get(k)})" for k in apart)
            raise TrainError(f"{folder / checkpoint.CONFIG}: a checkpoint of another configuration: expected {pairs}")


def essence(config: TrainingConfig, stages: list[str]) -> dict[str, Any]:
    """The settings that decide the weights of these stages, without those of parallelism, reports and saving."""
    raw = json.loads(config.to_json())
    for name in ("parallel", "checkpointing", "report_every", "save_every", "sample_every", "keep"):
        raw.pop(name)
    for name in ALL:
        stage = raw.pop(name.replace("-", "_"))
        if name in stages:
            stage.pop("accumulate")
            raw |= {f"{name}.{k}": v for k, v in stage.items()}
    return raw


def find_latents(model: Model, clips: Shards, out: Path, world: World) -> Shards:
    """The clips' latents by this model's VAE: the prepared ones, or those made once for this training."""
    if "latents" in clips.fields and clips.manifest.vae == encoder_fingerprint(model.vae):
        return clips
    folder = out / "latents"
    if world.first and not (folder / MANIFEST).is_file():
        if "video" not in clips.fields:
            clips.require_encoder(model)
        log.info("latents: %d clips through the VAE", len(clips))
        encode(model, clips, folder)
    world.barrier()
    latents = Shards(folder)
    latents.require_encoder(model)
    if latents.manifest.of != clips.digest:
        raise DataError(f"{folder}: expected latents of {clips.folder}, got those of other clips; remove {folder}")
    return latents


@torch.no_grad()
def encode(model: Model, clips: Shards, folder: Path, each: int = 100) -> None:
    """Write the latents of all clips as shards of their own, in the clips' order."""
    folder.mkdir(parents=True, exist_ok=True)
    made_by = encoder_fingerprint(model.vae)
    manifest = Manifest(model.config.height, model.config.width, clips.manifest.speech, made_by, clips.digest)
    for first in range(0, len(clips), each):
        part = range(first, min(first + each, len(clips)))
        latents = torch.cat([to_tokens(model.vae.encode(clips.pixels(i)[None].to(model.device))).half() for i in part])
        entry = write_shard(folder, f"latents_{first:06d}.safetensors", {"latents": latents.cpu()})
        manifest.shards.append(entry | {"split": "train"})
    manifest.save(folder)


def sampler(model: Model, clips: Shards, folder: Path, world: World) -> Callable[[int], None] | None:
    """A function that writes a sample video for the first clip's sound and photo; None if the data lacks them.

    All processes have to call that function.
    """
    if not {"samples", "video"} <= clips.fields:
        return None
    if model.config.speech.features == "whisper":
        log.info("%s: no samples, which need the Whisper model that training does not load", folder)
        return None
    photo = clips.read("video", [0])[0, 0].numpy()
    sound = clips.read("samples", [0])[0, LEAD + FRAME :][: SAMPLE_SECONDS * RATE].numpy()

    def sample(step: int) -> None:
        shown = whole_model(model, world)
        if shown is None:
            return
        with shown.session(shown.prepare(photo, crop="center")) as session:
            session.push_audio(sound)
            session.end_segment()
            video = np.concatenate([block.video for block in session.blocks()])
        write_sample(folder, step, video, sound[: len(video) * FRAME], RATE)

    return sample
