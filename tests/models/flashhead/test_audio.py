"""Sound to audio tokens: windows of frames, wav2vec against transformers', and what belongs to the whole window."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch

from rest_fast.checkpoint import Unfilled
from rest_fast.config.flashhead import Wav2VecConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.flashhead.audio import windows
from rest_fast.models.flashhead.wav2vec import Wav2Vec
from tests.kit.flashhead import toy, toy_model, window
from tests.kit.models import randomise


def test_frames_behind_the_end_repeat_the_last():
    """Of 200 features the last 33 are centres, and the last two see frame 199 again: 167 - 2 is the first seen."""
    numbers = torch.arange(200.0)[None, :, None, None]
    seen = windows(numbers, 33, 5)[0, ..., 0, 0]
    assert seen.shape == (33, 5)
    assert seen[0].tolist() == [165, 166, 167, 168, 169]
    assert seen[-3].tolist() == [195, 196, 197, 198, 199]
    assert seen[-2].tolist() == [196, 197, 198, 199, 199]
    assert seen[-1].tolist() == [197, 198, 199, 199, 199]


def test_what_each_latent_frame_hears():
    """Left half of a group's first frame, the middles of six, the right half of its last: 12 frames, no others."""
    model = toy_model(torch.float64)
    _, _, features = window(model)
    before = model.dit.audio(features)
    count = features.shape[1]
    first = count - 33
    heard = {}
    for frame in range(count):
        changed = features.clone()
        changed[:, frame] += 1
        difference = (model.dit.audio(changed) - before).abs().amax((0, 2, 3))
        for latent in difference.gt(1e-9).nonzero().flatten().tolist():
            heard.setdefault(latent, []).append(frame - first)
    assert heard[0] == [-2, -1, 0, 1, 2]
    for latent in range(1, 5):
        own = range(8 * latent - 7, 8 * latent + 1)  # frame 0 is the first latent's
        assert heard[latent] == [f for f in range(own[0] - 2, own[-1] + 3) if f <= 32]


def test_the_norm_of_audio_tokens_has_its_own_epsilon():
    assert toy_model().dit.audio.norm.eps == 1e-5 and toy_model().dit.blocks[0].norm.eps == 1e-6


def transformers_state(model: Wav2Vec) -> dict[str, torch.Tensor]:
    """Our weights under transformers' names, with the position's weight norm undone."""
    state = {}
    for name, tensor in model.state_dict().items():
        name = re.sub(r"^convs\.(\d+)", r"feature_extractor.conv_layers.\1.conv", name)
        name = name.replace("conv_norm", "feature_extractor.conv_layers.0.layer_norm")
        name = name.replace("project_norm", "feature_projection.layer_norm")
        name = re.sub(r"^project\.", "feature_projection.projection.", name)
        name = re.sub(r"^norm\.", "encoder.layer_norm.", name)
        name = re.sub(r"^(layers\.\d+)\.attn_norm", r"encoder.\1.layer_norm", name)
        name = re.sub(r"^(layers\.\d+)\.norm", r"encoder.\1.final_layer_norm", name)
        name = re.sub(r"^(layers\.\d+)\.out", r"encoder.\1.attention.out_proj", name)
        name = re.sub(r"^(layers\.\d+)\.mlp\.0", r"encoder.\1.feed_forward.intermediate_dense", name)
        name = re.sub(r"^(layers\.\d+)\.mlp\.2", r"encoder.\1.feed_forward.output_dense", name)
        fused = re.match(r"^(layers\.\d+)\.qkv\.(weight|bias)", name)
        if fused:
            for letter, part in zip("qkv", tensor.chunk(3), strict=True):
                state[f"encoder.{fused[1]}.attention.{letter}_proj.{fused[2]}"] = part
        elif name == "position.weight":
            norm = tensor.norm(dim=(0, 1), keepdim=True)
            state["encoder.pos_conv_embed.conv.parametrizations.weight.original0"] = norm
            state["encoder.pos_conv_embed.conv.parametrizations.weight.original1"] = 3 * tensor  # any length
        elif name == "position.bias":
            state["encoder.pos_conv_embed.conv.bias"] = tensor
        else:
            state[name] = tensor
    return state


def test_features_are_those_of_transformers():
    """Convolutions, interpolation to 25 Hz by numpy, projection and hidden states 1 to the last."""
    transformers = pytest.importorskip("transformers")
    model = toy_model().speech
    c = model.config
    settings = transformers.Wav2Vec2Config(
        hidden_size=c.width,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        intermediate_size=c.mlp_width,
        conv_dim=c.conv_channels,
        num_conv_pos_embeddings=c.position_kernel,
        num_conv_pos_embedding_groups=c.position_groups,
    )
    peer = transformers.Wav2Vec2Model(settings).eval()
    missing, unexpected = peer.load_state_dict(transformers_state(model), strict=False)
    assert missing == ["masked_spec_embed"] and not unexpected  # which only training uses
    sound = torch.randn(1, model.samples, generator=torch.Generator().manual_seed(2)) * 0.1 + 0.05
    extractor = transformers.Wav2Vec2FeatureExtractor()
    values = torch.from_numpy(extractor(sound[0].numpy(), sampling_rate=16000).input_values[0])[None]
    with torch.no_grad():
        x = peer.feature_extractor(values).mT.numpy()[0]
        assert len(x) == 25 * c.seconds * 2 - 1  # 399 of 8 s
        where = np.linspace(0, len(x) - 1, model.frames)
        x = np.stack([np.interp(where, np.arange(len(x)), channel) for channel in x.T], -1).astype(np.float32)
        hidden, _ = peer.feature_projection(torch.from_numpy(x)[None])
        states: list[torch.Tensor] = []
        for layer in peer.encoder.layers:
            layer.register_forward_hook(lambda _, __, out: states.append(out[0] if isinstance(out, tuple) else out))
        peer.encoder(hidden)
    want = torch.stack(states, 2)
    got = model(sound)
    assert got.shape == (1, 25 * c.seconds, c.layers, c.width)
    # float32 on both sides, states of size 1 behind a norm
    assert torch.allclose(got, want, atol=2e-5, rtol=0)


def test_mean_and_variance_are_those_of_the_whole_window():
    """So sound at the window's start changes features at its end, and loudness and offset change nothing."""
    model = toy_model(torch.float64).speech
    sound = torch.randn(1, model.samples, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    whole = model(sound)
    assert torch.allclose(model(3 * sound + 1), whole, atol=1e-6)
    earlier = sound.clone()
    earlier[:, :1000] *= 5
    assert (model(earlier) - whole)[:, -1].abs().max() > 1e-4


def test_silence_is_finite():
    assert toy_model().speech(torch.zeros(1, toy_model().speech.samples)).isfinite().all()


def test_it_stays_float32_in_a_model_of_bfloat16():
    model = randomise(Wav2Vec(toy().speech), 1)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    after = model.bfloat16().state_dict()
    assert all(torch.equal(after[k], v) for k, v in before.items())
    assert Wav2Vec(toy().speech).double().project.weight.dtype == torch.float64


def test_the_published_size():
    with Unfilled():
        model = Wav2Vec(Wav2VecConfig())
    assert (model.samples, model.frames) == (128_000, 200)
    # 94,371,712 of transformers' base, which counts 768 for masking and 128 more in the norm of the weight's length
    assert sum(p.numel() for p in model.parameters()) == 94_371_712 - 768 - 128


def test_another_length_of_sound_is_refused():
    with pytest.raises(ArgumentError, match="expected \\[B, 32000\\], got \\[1, 31999\\]"):
        toy_model().speech(torch.zeros(1, 31999))
