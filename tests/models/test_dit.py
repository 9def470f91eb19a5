"""The DiT against diffusers' LTX-Video transformer, against loops with an explicit mask, and who sees whom."""

from __future__ import annotations

import math

import pytest
import torch

from rest_fast.config import ModelConfig, preset
from rest_fast.models.dit import StreamingDiT
from tests.kit.models import (
    F64,
    clip,
    diffusers_state,
    exact_norms,
    plain_velocity,
    randomise,
    sink,
    toy,
    toy_dit,
    window_view,
)

LAYOUTS = ["full", "teacher", "streaming"]

# -- diffusers


def build(config: ModelConfig, seed: int = 0):
    """(ours, diffusers') in layout full without audio, with the same random weights."""
    ltx = pytest.importorskip("diffusers.models.transformers.transformer_ltx")
    ours = StreamingDiT(config)
    randomise(ours, seed)
    with torch.device("meta"):
        theirs = ltx.LTXVideoTransformer3DModel(
            in_channels=config.vae.latent_channels,
            out_channels=config.vae.latent_channels,
            num_attention_heads=config.dit.heads,
            attention_head_dim=config.dit.head_dim,
            cross_attention_dim=config.dit.width,
            num_layers=config.dit.layers,
            caption_channels=config.dit.text_channels,
        )
    theirs.load_state_dict(diffusers_state(ours), strict=True, assign=True)
    return ours.requires_grad_(False).eval(), theirs.requires_grad_(False).eval()


def run_theirs(theirs, ours: StreamingDiT, config: ModelConfig, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """diffusers takes t in 0..1000 and per token; the scale is seconds of a latent and pixels of a cell."""
    prompt = ours.prompt.expand(z.shape[0], -1, -1)
    rows, columns = config.grid
    return theirs(
        hidden_states=z,
        encoder_hidden_states=prompt,
        timestep=1000 * t.repeat_interleave(ours.tokens, 1),
        encoder_attention_mask=torch.ones(prompt.shape[:2]),
        num_frames=t.shape[1],
        height=rows,
        width=columns,
        rope_interpolation_scale=(8 / 25, 32, 32),
        return_dict=False,
    )[0]


def plain(layers: int = 3, **dit) -> ModelConfig:
    """No audio, layout full, 2 x 3 cells so that rows and columns cannot be swapped."""
    return toy(dit__audio=False, dit__layout="full", dit__layers=layers, height=64, width=96).replace(
        **{f"dit__{k}": v for k, v in dit.items()}
    )


def test_equals_diffusers():
    """As published, float32. Theirs computes angles in float32 (up to 1.6e4, so wrong by 1e-3), ours in float64."""
    config = plain()
    ours, theirs = build(config)
    z, t, _ = clip(ours, config, 5, 2)
    z, t = z.float(), t.float()
    want = run_theirs(theirs, ours, config, z, t)
    got = ours(z, t, None)
    assert want.std() > 0.3
    torch.testing.assert_close(got, want, rtol=0, atol=5e-3)
    assert (got - want).square().mean().sqrt() < 1e-3 * want.std()


def exact(theirs, monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' float32 islands (angles, rotation, mean square) in float64; the formulas are its own."""
    from diffusers.models.transformers import transformer_ltx

    def rotary(x, freqs):
        a, b = x.unflatten(2, (-1, 2)).unbind(-1)
        return x * freqs[0] + torch.stack([-b, a], -1).flatten(2) * freqs[1]

    def tables(hidden_states, num_frames, height, width, scale, video_coords):
        rope, axes = theirs.rope, [torch.arange(n, dtype=F64) for n in (num_frames, height, width)]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)[None]
        extent = (rope.base_num_frames, rope.base_height, rope.base_width)
        grid = torch.stack([grid[..., i] * scale[i] / extent[i] for i in range(3)], -1)
        freqs = rope.theta ** torch.linspace(0, 1, rope.dim // 6, dtype=F64) * math.pi / 2
        freqs = (freqs * (grid.unsqueeze(-1) * 2 - 1)).transpose(-1, -2).flatten(2)
        out = [f.repeat_interleave(2, dim=-1) for f in (freqs.cos(), freqs.sin())]
        ends = torch.ones_like(out[0][..., : rope.dim % 6]), torch.zeros_like(out[0][..., : rope.dim % 6])
        # ours keeps tables of cos and sin in float32
        return [torch.cat([end, part.float().double()], -1) for end, part in zip(ends, out, strict=True)]

    monkeypatch.setattr(transformer_ltx, "apply_rotary_emb", rotary)
    monkeypatch.setattr(theirs.rope, "forward", tables)
    exact_norms(theirs)


@pytest.mark.parametrize("heads, head_dim", [(2, 16), (3, 14), (2, 18)])  # 2, 0 and 0 of width 32, 42, 36 unrotated
def test_equals_diffusers_in_float64(heads, head_dim, monkeypatch):
    """Nothing left to hide behind: float64 roundings through three blocks."""
    config = plain(heads=heads, head_dim=head_dim)
    ours, theirs = build(config)
    ours, theirs = ours.double(), theirs.double()
    exact(theirs, monkeypatch)
    z, t, _ = clip(ours, config, 4, 2)
    t = (1024 * t).round() / 1024  # 1000 t is exact in float32 then, and the sinusoid, float32 in both, bit-equal
    want = run_theirs(theirs, ours, config, z, t)
    torch.testing.assert_close(ours(z, t, None), want, rtol=1e-10, atol=1e-10)


def test_real_width_equals_diffusers():
    """One block at 32 heads of 64, 4096 text channels: 341 frequencies an axis and two leading channels unrotated."""
    config = preset("rest-512").replace(height=64, width=96, dit__audio=False, dit__layout="full", dit__layers=1)
    config = config.replace(dit__text_tokens=7)
    ours, theirs = build(config)
    z, t, _ = clip(ours, config, 3)
    z, t = z.float(), t.float()
    want = run_theirs(theirs, ours, config, z, t)
    torch.testing.assert_close(ours(z, t, None), want, rtol=0, atol=5e-3 * want.std().item())
    assert ours.positions.freqs.shape == (341,) and ours.positions.freqs.dtype == F64


def test_angles_against_diffusers():
    """Theirs in float32: an angle f (2x - 1) is off by a few 1e-7 of f, and ours is where that error goes to zero."""
    ltx = pytest.importorskip("diffusers.models.transformers.transformer_ltx")
    from rest_fast.ops import rope

    config = plain()
    dit = StreamingDiT(config)
    width = config.dit.width
    cos, sin = ltx.LTXVideoRotaryPosEmbed(width)(torch.zeros(1, 1), 4, *config.grid, (8 / 25, 32, 32))
    table = rope.token_table(dit.positions.time(torch.arange(4)), dit.positions.y, dit.positions.x, width)
    freqs = torch.cat([torch.zeros(1), dit.positions.freqs.float().repeat_interleave(3)])
    for want, got in ((cos, table[..., 0]), (sin, table[..., 1])):
        error = (want[0, :, ::2] - got).abs()
        assert (error <= 1e-6 + 1e-6 * freqs).all()
        assert torch.equal(want[0, :, ::2], want[0, :, 1::2])  # interleaved pairs


def test_sinusoid_against_diffusers():
    emb = pytest.importorskip("diffusers.models.embeddings")
    dit = StreamingDiT(plain(1))
    seen = []
    dit.time.embed[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    t = torch.tensor([[0.0, 0.125, 0.5, 1.0]])
    dit.time(t)
    want = emb.Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(1000 * t.flatten())
    # angles of up to 1000 in float32: a last place is 6e-5
    torch.testing.assert_close(seen[0][0], want, rtol=0, atol=2e-4)


# -- the layouts against loops with an explicit mask


def full_view(frames: int):
    return lambda f: (f, {g: g for g in range(frames)})


def teacher_view(frames: int):
    return lambda f: (f, {g: g for g in range(frames)} if f else {0: 0})


# tables of cos and sin are float32: 6e-8 an entry, some tens of entries in a score, velocities near 1
CLOSE = {"rtol": 0, "atol": 5e-6}


@pytest.mark.parametrize("layout, view", [("full", full_view), ("teacher", teacher_view)])
def test_whole_clips(layout, view):
    config = toy()
    dit = toy_dit(config)
    z, t, codes = clip(dit, config, 6, 2)
    want = plain_velocity(dit, config, z, t, codes, view(6))
    torch.testing.assert_close(dit(z, t, codes, layout), want, **CLOSE)


@pytest.mark.parametrize("chunk", [3, 2])
@pytest.mark.parametrize("positions", ["window", "absolute"])
@pytest.mark.parametrize("context", [0, 1, 2, 50])
def test_streaming_layout(context, positions, chunk):
    """Also a context that never ends: then a block-causal mask over the whole clip, at positions 0, 1, 2, ..."""
    config = toy(stream__context_chunks=context, stream__positions=positions, stream__chunk=chunk)
    dit = toy_dit(config)
    frames = 1 + 5 * chunk
    z, t, codes = clip(dit, config, frames)
    got = dit(z, t, codes, "streaming")
    view = window_view(chunk, context, frames, positions == "absolute")
    torch.testing.assert_close(got, plain_velocity(dit, config, z, t, codes, view), **CLOSE)

    def block_causal(f):
        own = (f - 1) // chunk if f else -1
        return f, {g: g for g in range(frames) if g == 0 or (g - 1) // chunk <= own}

    if context == 50:
        torch.testing.assert_close(got, plain_velocity(dit, config, z, t, codes, block_causal), **CLOSE)
    if context == 1 and positions == "window":  # would the comparison see a context that stands one frame off?

        def late(f):
            own, seen = view(f)
            return own, {g: p + (g > 0 and (g - 1) // chunk < (f - 1) // chunk) for g, p in seen.items()}

        assert (got - plain_velocity(dit, config, z, t, codes, late)).abs().max() > 1e-2


def test_window_positions_of_the_first_two_chunks_are_the_absolute_ones():
    window, absolute = (toy_dit(toy(stream__positions=p)) for p in ("window", "absolute"))
    config = toy()
    z, t, codes = clip(window, config, 10)
    a, b = window(z, t, codes, "streaming"), absolute(z, t, codes, "streaming")
    first = 7 * window.tokens
    torch.testing.assert_close(a[:, :first], b[:, :first], rtol=0, atol=0)
    assert (a[:, first:] - b[:, first:]).abs().max() > 1e-3


def test_positionwise_io():
    """Own matrices per position: with equal matrices it is the plain layer; each position uses its own."""
    config = toy(dit__positionwise_io=True)
    dit, shared = toy_dit(config), toy_dit(toy())
    z, t, codes = clip(dit, config, 4)
    state = {k: v.clone() for k, v in shared.state_dict().items()}
    for name in ("proj_in", "proj_out"):
        state[f"{name}.weight"] = shared.state_dict()[f"{name}.weight"].T.expand(dit.tokens, -1, -1)
        state[f"{name}.bias"] = shared.state_dict()[f"{name}.bias"].expand(dit.tokens, -1)
    dit.load_state_dict(state)
    before = dit(z, t, codes)
    torch.testing.assert_close(before, shared(z, t, codes), rtol=1e-12, atol=1e-12)
    dit.proj_out.bias[2] += 1
    moved = (dit(z, t, codes) - before).abs().amax((0, 2)).unflatten(0, (-1, dit.tokens))
    assert (moved[:, 2] > 0.9).all() and (moved[:, [0, 1, 3]] == 0).all()


# -- who sees whom


def frames_changed(dit: StreamingDiT, before: torch.Tensor, after: torch.Tensor) -> list[int]:
    return (before != after).any(-1)[0].unflatten(0, (-1, dit.tokens)).any(-1).nonzero().flatten().tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_reference_is_isolated(layout):
    """Noise, timesteps and codes of the other frames: nothing of it in the reference's tokens (but in layout full)."""
    config = toy()
    dit = toy_dit(config)
    z, t, codes = clip(dit, config, 7)
    base = dit(z, t, codes, layout)
    z2, t2, codes2 = clip(dit, config, 7, seed=9)
    z2[:, : dit.tokens] = z[:, : dit.tokens]
    for other in ((z2, t, codes), (z, t2, codes), (z, t, codes2)):
        changed = frames_changed(dit, base, dit(*other, layout))
        assert changed == list(range(7)) if layout == "full" else changed == list(range(1, 7))


@pytest.mark.parametrize("layout", ["teacher", "streaming"])
def test_the_sink_is_the_reference_s_keys_in_a_clip(layout):
    """Hooks on the projections of a whole clip, among noise: frame 0's keys and values are those of ``sink``."""
    config = toy()
    dit = toy_dit(config)
    z, t, codes = clip(dit, config, 7)
    k, v = sink(dit, config, z[0, : dit.tokens])
    seen = []
    for block in dit.blocks:
        block.attn.qkv.register_forward_hook(lambda _, __, out: seen.append(out[:, : dit.tokens]))
    dit(z, t, codes, layout)
    assert len(seen) == config.dit.layers
    for layer, qkv in enumerate(seen):
        value = qkv[0].chunk(3, -1)[2]
        torch.testing.assert_close(v[layer].flatten(1), value, rtol=1e-12, atol=1e-12)
        _, rotated, _ = dit.qkv_heads(layer, qkv, torch.zeros(1))
        torch.testing.assert_close(k[layer], rotated[0], rtol=1e-12, atol=1e-12)


def test_the_sink_depends_on_the_photo():
    config = toy()
    dit = toy_dit(config)
    a, b = torch.randn(2, dit.tokens, 8, dtype=F64)
    (ka, va), (kb, vb) = sink(dit, config, a), sink(dit, config, b)
    assert ka.shape == va.shape == (2, dit.tokens, 2, 16)
    assert all((ka[i] - kb[i]).abs().max() > 1e-2 and (va[i] - vb[i]).abs().max() > 1e-2 for i in range(2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_audio_reaches_its_own_frame_only(layout):
    """In one block, audio comes after self-attention: codes of frame i change the velocity of frame i and no other."""
    config = toy(dit__layers=1)
    dit = toy_dit(config)
    z, t, codes = clip(dit, config, 7)
    base = dit(z, t, codes, layout)
    for i in range(7):
        other = codes.clone()
        other[:, i] += 1
        assert frames_changed(dit, base, dit(z, t, other, layout)) == [i]


def test_audio_in_two_blocks_reaches_what_attends():
    """With a second block: its own chunk, and the next one through the context, and nothing before."""
    config = toy()
    dit = toy_dit(config)
    z, t, codes = clip(dit, config, 13)
    base = dit(z, t, codes, "streaming")
    other = codes.clone()
    other[:, 5] += 1
    assert frames_changed(dit, base, dit(z, t, other, "streaming")) == [4, 5, 6, 7, 8, 9]


def test_both_tokens_of_a_frame_are_heard():
    config = toy(dit__layers=1)
    dit = toy_dit(config)
    z, t, codes = clip(dit, config, 4)
    for token in range(2):
        other = codes.clone()
        other[:, 2, token] += 1
        assert frames_changed(dit, dit(z, t, codes), dit(z, t, other)) == [2]
    # attention has no order of tokens
    torch.testing.assert_close(dit(z, t, codes.flip(2)), dit(z, t, codes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("context, reach", [(0, 1), (1, 2), (2, 3)])
def test_context_ends_where_it_should(context, reach):
    """One block: chunk i is seen by itself and by the ``context`` chunks that follow."""
    config = toy(dit__layers=1, stream__context_chunks=context)
    dit = toy_dit(config)
    z, t, codes = clip(dit, config, 16)
    base = dit(z, t, codes, "streaming")
    other = z.clone()
    other[:, 4 * dit.tokens : 7 * dit.tokens] += 1  # chunk 1
    want = list(range(4, min(16, 4 + 3 * reach)))
    assert frames_changed(dit, base, dit(other, t, codes, "streaming")) == want


def test_timesteps_are_per_frame():
    config = toy(dit__layers=1)
    dit = toy_dit(config)
    z, t, codes = clip(dit, config, 4)
    other = t.clone()
    other[:, 3] = 0.9
    base, got = dit(z, t, codes, "streaming"), dit(z, other, codes, "streaming")
    assert frames_changed(dit, base, got) == [1, 2, 3]  # its chunk: keys are modulated too


def test_fresh_weights_start_as_the_file_says():
    """Zero velocity, silent audio, no modulation: training starts from the identity."""
    config = toy()
    dit = StreamingDiT(config).requires_grad_(False)
    z, t, codes = (x.float() for x in clip(dit, config, 4))
    dit.proj_out.bias.zero_()
    assert (dit(z, t, codes) == 0).all()
    torch.nn.init.normal_(dit.proj_out.weight)
    assert dit(z, t, codes).abs().max() > 0.1
    for block in dit.blocks:
        block.audio.out.bias.zero_()
    assert torch.equal(dit(z, t, codes), dit(z, t, 2 * codes))


def test_positions_stay_wide():
    """A model in bfloat16 keeps float64 frequencies and float32 tables, and so does one that came back."""
    dit = StreamingDiT(toy())
    tables = [x.clone() for x in (dit.positions.freqs, dit.positions.y, dit.positions.x)]
    dit.bfloat16()
    assert all(map(torch.equal, tables, (dit.positions.freqs, dit.positions.y, dit.positions.x)))
    assert dit.positions.y.dtype == dit.positions.x.dtype == torch.float32
    assert dit.positions.freqs.dtype == F64 and dit.table.dtype == torch.bfloat16


# -- refusals


@pytest.mark.parametrize(
    "cut",
    [
        lambda z, t, codes: (z[:, :-1], t, codes),
        lambda z, t, codes: (z, t[:, :-1], codes),
        lambda z, t, codes: (z[0], t, codes),
        lambda z, t, codes: (z, t[0], codes),
    ],
)
def test_wrong_shapes(cut):
    config = toy()
    dit = toy_dit(config)
    with pytest.raises(ValueError, match=r"dit: expected z \[B, F x 4, C\] and t \[B, F\], got"):
        dit(*cut(*clip(dit, config, 4)))


@pytest.mark.parametrize("frames", [1, 2, 3, 5, 6])
def test_streaming_needs_whole_chunks(frames):
    config = toy()
    dit = toy_dit(config)
    with pytest.raises(ValueError, match=rf"streaming: expected 1 \+ 3 n latent frames with n >= 1, got {frames}"):
        dit(*clip(dit, config, frames), "streaming")
