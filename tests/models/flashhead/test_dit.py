"""The transformer equals formulas written anew, and diffusers' Wan where both have the same arithmetic."""

from __future__ import annotations

import re

import pytest
import torch

from rest_fast.models.flashhead.dit import FlashHeadDiT, rope_table
from tests.kit.flashhead import plain_audio, plain_velocity, toy, toy_model, window

F64 = torch.float64


@pytest.mark.parametrize("timestep", [1000.0, 936.0, 625.0])
def test_an_evaluation_equals_the_formulas(timestep):
    model = toy_model(F64)
    z, reference, features = window(model)
    tokens = model.dit.audio(features)
    plain = plain_audio(model.dit, features[0])
    assert torch.allclose(tokens[0], plain, atol=1e-12, rtol=0)
    got = model.dit(z, reference, torch.tensor(timestep, dtype=F64), model.dit.hear(tokens))
    want = plain_velocity(model.dit, model.config, z[0], reference[0], timestep, plain)
    assert want.std() > 0.1  # it does something
    assert torch.allclose(got[0], want, atol=1e-10, rtol=0)


def wan_names(name: str) -> str:
    """Ours -> diffusers' ``WanTransformer3DModel``; its norm2 is the affine one."""
    for pattern, replacement in (
        (r"^proj_in", "patch_embedding"),
        (r"^time\.embed\.0", "condition_embedder.time_embedder.linear_1"),
        (r"^time\.embed\.2", "condition_embedder.time_embedder.linear_2"),
        (r"^time\.six", "condition_embedder.time_proj"),
        (r"^table", "scale_shift_table"),
        (r"\.table$", ".scale_shift_table"),
        (r"\.attn\.", ".attn1."),
        (r"\.audio\.", ".attn2."),
        (r"\.(q|k)_norm$", r".norm_\1.weight"),
        (r"\.q\.", ".to_q."),
        (r"\.out\.", ".to_out.0."),
        (r"^(blocks\.\d+)\.norm\.", r"\1.norm2."),
        (r"\.mlp\.0", ".ffn.net.0.proj"),
        (r"\.mlp\.2", ".ffn.net.2"),
    ):
        name = re.sub(pattern, replacement, name)
    return name


def wan_state(dit: FlashHeadDiT) -> dict[str, torch.Tensor]:
    state = {}
    for name, tensor in dit.named_parameters():
        if name.startswith("audio."):
            continue
        fused = re.search(r"\.(qkv|kv)\.(weight|bias)$", name)
        if fused:
            for letter, part in zip(fused[1], tensor.chunk(len(fused[1])), strict=True):
                state[f"{wan_names(name[: fused.start()] + '.')}to_{letter}.{fused[2]}"] = part
        else:
            state[wan_names(name)] = tensor
    state["patch_embedding.weight"] = state["patch_embedding.weight"][..., None, None, None]
    for name in [name for name in state if name.endswith("scale_shift_table")]:
        state[name] = state[name][None]
    return state


def test_it_is_diffusers_wan_where_all_frames_hear_the_same():
    """Wan attends from all tokens to one text; so does ours to audio that is the same in every frame."""
    wan = pytest.importorskip("diffusers.models.transformers.transformer_wan")
    model = toy_model()
    config, d = model.config, model.config.dit
    peer = wan.WanTransformer3DModel(
        patch_size=(1, 1, 1),
        num_attention_heads=d.heads,
        attention_head_dim=d.head_dim,
        in_channels=2 * config.vae.latent_channels,
        out_channels=config.vae.latent_channels,
        text_dim=8,
        freq_dim=d.time_channels,
        ffn_dim=d.mlp_width,
        num_layers=d.layers,
    ).eval()
    peer.condition_embedder.text_embedder = torch.nn.Identity()
    missing, unexpected = peer.load_state_dict(wan_state(model.dit), strict=False)
    assert not missing and not unexpected
    z, reference, features = window(model)
    tokens = model.dit.audio(features)[:, :1]
    got = model.dit(z, reference, torch.tensor(936.0), model.dit.hear(tokens.expand(-1, config.stream.window, -1, -1)))
    both = torch.cat([z, reference], -1).mT.unflatten(-1, (config.stream.window, *config.grid))
    with torch.no_grad():
        want = peer(both, torch.tensor([936.0]), tokens[:, 0], return_dict=False)[0]
    # both in float32; velocities are of size 1, and 2 blocks round some hundred times
    assert torch.allclose(got, want.flatten(2).mT, atol=2e-5, rtol=0)


def test_a_frame_hears_its_own_audio_alone():
    """Attention to audio by frame: with closed self-attention another frame's audio changes nothing."""
    model = toy_model(F64)
    z, _, features = window(model)
    tokens = model.dit.audio(features)
    block, x = model.dit.blocks[0], torch.randn(1, z.shape[1], model.config.dit.width, dtype=F64)
    six = torch.zeros(6, model.config.dit.width, dtype=F64)
    six[2] = -block.table[2]  # closes the gate of self-attention
    before = block(x, six, model.dit.rope, block.audio.keys_values(tokens))
    tokens[:, 3] += 1
    changed = (block(x, six, model.dit.rope, block.audio.keys_values(tokens)) - before).abs().amax(-1)[0]
    per_frame = changed.view(model.config.stream.window, -1).amax(-1)
    assert per_frame[3] > 1e-3 and per_frame[[0, 1, 2, 4]].eq(0).all()


def test_pairs_of_a_head_at_the_published_size():
    """Of 64 pairs 22 turn with time, 21 with rows and 21 with columns, and each axis begins with one radian."""
    config = toy().dit
    big = type(config)()
    table = rope_table(big, 2, 2, 2)
    assert table.shape == (8, 768, 2)
    angles = torch.atan2(table[..., 1], table[..., 0])[:, :64]
    assert torch.equal(table[:, :64], table[:, 64:128])  # every head the same
    turned = [angles[token].ne(0) for token in (4, 2, 1)]  # one step in time, one row, one column
    assert [t.nonzero().flatten().tolist() for t in turned] == [[*range(22)], [*range(22, 43)], [*range(43, 64)]]
    assert angles[4, 0] == angles[2, 22] == angles[1, 43] == 1
    assert torch.allclose(angles[4, 21], torch.tensor(10000 ** (-42 / 44), dtype=F64))
    assert torch.allclose(angles[1, 63], torch.tensor(10000 ** (-40 / 42), dtype=F64))


def test_the_output_is_modulated_by_the_embedding_before_its_projection():
    """The trap: the head adds the time vector itself, not one of the six."""
    model = toy_model(F64)
    z, reference, features = window(model)
    heard, t = model.dit.hear(model.dit.audio(features)), torch.tensor(800.0, dtype=F64)
    six, embedded = model.dit.time(t)
    assert torch.allclose(six, model.dit.time.six(torch.nn.functional.silu(embedded)).view(6, -1))
    seen = []
    handle = model.dit.proj_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model.dit(z, reference, t, heard)
    handle.remove()
    shift, scale = model.dit.table + embedded
    normed = (seen[0] - shift) / (1 + scale)
    assert torch.allclose(normed.mean(-1), torch.zeros(1, dtype=F64), atol=1e-9)
    assert torch.allclose(normed.var(-1, unbiased=False), torch.ones(1, dtype=F64), atol=1e-4)


def test_rotations_stay_exact_in_a_model_of_bfloat16():
    dit = FlashHeadDiT(toy()).bfloat16()
    assert dit.rope.dtype == F64 and torch.equal(dit.rope, FlashHeadDiT(toy()).rope)
