"""What a step of training keeps: ``rest-512`` counted on the device ``meta``, its width measured on the CPU."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rest_fast import Model, preset
from rest_fast.config import ModelConfig
from rest_fast.training.asd import ASD
from rest_fast.training.config import training_preset
from rest_fast.training.flow import Batch, FlowStage
from rest_fast.training.student import Student
from rest_fast.training.teacher import Teacher
from tests.kit.toys import toy

FRAMES = 13  # latent frames of a clip


class Live(TorchDispatchMode):
    """Bytes of the storages that operations made and that are still there; those of ``known`` tensors count nothing."""

    def __init__(self, known: list[torch.Tensor]):
        super().__init__()
        self.now, self.peak = 0, 0
        self.known = {t.untyped_storage()._cdata for t in known}
        self.seen: dict[int, Any] = {}

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        result = operation(*arguments, **(options or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return result

    def count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known or key in self.seen:
            return

        def gone(_: object) -> None:
            self.now -= size
            del self.seen[key]

        self.seen[key] = weakref.ref(storage, gone)
        self.now += size
        self.peak = max(self.peak, self.now)


def narrow(layers: int, side: int = 512) -> ModelConfig:
    """``rest-512`` with fewer blocks, pictures of another size, and a VAE that costs nothing."""
    config = preset("rest-512")
    vae = preset("toy").vae
    return config.replace(dit__layers=layers, height=side, width=side, vae=vae, vae__latent_channels=128)


def student(config: ModelConfig, checkpointing: bool) -> Student:
    model = Model(config)
    return Student(model, training_preset("rest-512").replace(precision="fp32", checkpointing=checkpointing))


def batch(config: ModelConfig, clips: int = 1) -> Batch:
    tokens, speech = FRAMES * config.tokens, config.speech
    z0, noise = torch.randn(2, clips, tokens, config.vae.latent_channels)
    t = torch.rand(clips, FRAMES)
    t[:, 0] = 0
    features = torch.randn(clips, 8 * (FRAMES - 1), speech.positions, speech.channels)
    keep = torch.ones(clips)
    return Batch(z0, noise, t, features, keep, keep, torch.ones(clips, device="cpu"))


def forward(stage: FlowStage, clip: Batch) -> tuple[Live, dict[str, torch.Tensor]]:
    """What is there after the forward pass, besides weights and the batch."""
    known = [*stage.parameters(), *stage.buffers(), *(t for t in vars(clip).values())]
    with Live(known) as live:
        terms = stage(clip)
    return live, terms


# -- rest-512 without memory


def test_parameters_of_rest_512():
    """Against the sums of its matrices: about 2.4 billion in the DiT and the SpeechAE encoder, which is what trains."""
    with torch.device("meta"):
        model = Model(preset("rest-512"))
    found = {name: sum(p.numel() for p in part.parameters()) for name, part in model.named_children()}
    w, layers, channels, text = 2048, 28, 128, 4096
    attention = 4 * w * w + 4 * w + 2 * w  # q, k, v, out with biases; two norms
    block = 3 * attention + (8 * w * w + 5 * w) + 6 * w  # self, text, audio; MLP; AdaLN
    time = (256 * w + w) + (w * w + w) + (6 * w * w + 6 * w)
    caption = (text * w + w) + (w * w + w)
    ends = (channels * w + w) + (w * channels + channels) + 2 * w
    assert found["dit"] == layers * block + time + caption + ends == 2_393_491_584
    assert found["speech"] == (5 * 1920 * w + w) + 3 * (3 * w * w + w) == 57_417_728
    audio = layers * attention
    assert (found["dit"] - audio) / 1e9 == pytest.approx(1.92, abs=0.005)  # LTX-Video 2B


@pytest.mark.parametrize("kind", [Teacher, Student])
def test_rest_512_runs_without_memory(kind):
    """All 13 latents of a clip at full size; with checkpointing a further block keeps its input and nothing more."""
    held = {}
    for layers in (2, 28):
        with torch.device("meta"):
            config = narrow(layers)
            stage = kind(Model(config), training_preset("rest-512").replace(precision="fp32"))
            clip = batch(config)
        live, terms = forward(stage, clip)
        assert terms["loss"].shape == () and terms["loss"].requires_grad
        held[layers] = live.now
    assert held[28] - held[2] == 26 * 4 * FRAMES * 256 * 2048


def test_the_peak_of_a_step_falls_as_predicted():
    """Forward and backward of L blocks: L A without, A + L x with checkpointing, A what a block keeps, x its input."""
    layers, x = 4, 4 * FRAMES * 256 * 2048
    peaks, held = {}, {}
    for checkpointing in (False, True):
        with torch.device("meta"):
            config = narrow(layers)
            stage, clip = student(config, checkpointing), batch(config)
            for p in stage.parameters():
                p.grad = torch.zeros_like(p)
        known = [*stage.parameters(), *(p.grad for p in stage.parameters()), *stage.buffers(), *vars(clip).values()]
        with Live(known) as live:
            loss = stage(clip)["loss"]
            held[checkpointing] = live.now
            loss.backward()
        peaks[checkpointing] = live.peak
    outside = held[True] - layers * x  # the speech encoder, the ends, the output
    kept = (held[False] - outside) / layers
    # what an operation works in comes on top: at most the MLP's hidden layer, its gradient, and a matrix's gradient
    scratch = 2 * 4 * x + 4 * 3 * 4 * 2048**2
    for checkpointing, predicted in ((False, layers * kept), (True, kept + layers * x)):
        assert predicted <= peaks[checkpointing] <= predicted + outside + scratch
    assert peaks[False] > 2.5 * peaks[True]


# -- on the CPU


@pytest.mark.slow
def test_checkpointing_measured_at_the_width_of_rest_512():
    """One and two blocks on 4 tokens a frame: what the second adds, with real tensors.

    Without checkpointing at least the inputs of its matrices: seven of the residual stream's size, attention's and the
    text's and the audio's and the MLP's first, and the hidden layer before and behind GELU, four times as large each.
    """
    config = narrow(2, side=64)
    stage, clip, x = student(config, False), batch(config), 4 * FRAMES * 4 * 2048
    dit, held = stage.network.dit, {}
    for layers in (2, 1):
        del dit.blocks[layers:]
        for dit.checkpointing in (False, True):
            live, terms = forward(stage, clip)
            assert terms["loss"].isfinite()
            held[layers, dit.checkpointing] = live.now
    assert held[2, True] - held[1, True] == x
    assert 15 * x <= held[2, False] - held[1, False] <= 60 * x


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("kind", ["student", "asd"])
def test_gradients_with_checkpointing_are_those_without(kind, precision):
    """To the bit: the second computation of a block is the first one again, in bf16 too."""
    gradients = []
    for checkpointing in (False, True):
        config = training_preset("toy").replace(precision=precision, checkpointing=checkpointing)
        model = toy(0)
        torch.manual_seed(0)
        model.dit.prompt.normal_()  # tokens of zeros are all alike, and no query matters
        stage = ASD(model, toy(1), config) if kind == "asd" else Student(model, config)
        model.dit.requires_grad_(True), model.speech.requires_grad_(True)
        stage(batch(config.model, clips=2))["loss"].backward()
        gradients.append({name: p.grad for name, p in stage.named_parameters() if p.requires_grad})
    without, with_ = gradients
    assert all(torch.equal(with_[name], gradient) for name, gradient in without.items())
    assert all(gradient.dtype == torch.float32 and gradient.any() for gradient in without.values())


def test_bf16_computes_in_bf16_and_keeps_fp32():
    """The largest matrices of a step are multiplied in bf16; weights, gradients and losses stay fp32, and close."""
    losses = {}
    for precision in ("fp32", "bf16"):
        config = training_preset("toy").replace(precision=precision)
        stage = Student(toy(0).requires_grad_(True), config)
        kinds = set()
        stage.network.dit.blocks[0].mlp[0].register_forward_hook(lambda _, i, out, kinds=kinds: kinds.add(out.dtype))
        torch.manual_seed(0)
        losses[precision] = stage(batch(config.model))["loss"]
        assert kinds == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert losses["bf16"].dtype == torch.float32
    # a bf16 number is off by 2^-9 at most; a loss is a mean over 13 x 4 x 8 squares of velocities, each off by a few
    torch.testing.assert_close(losses["bf16"], losses["fp32"], rtol=0.02, atol=0)
    assert losses["bf16"] != losses["fp32"]
