"""Streaming decode and encode of the LTX-Video family: pieces against the whole, what a mode promises, its memory."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from rest_fast import noise
from rest_fast.models.vae import TemporalVAE
from rest_fast.models.vae.layers import DecodeWorkspace
from rest_fast.models.vae.state import StreamState
from tests.kit.models import F64, latents, randomise, video
from tests.kit.releases import LAYOUTS, LAYOUTS_AND_MORE, layout, relative

PLANS = [[1] * 7, [3, 4], [1, 3, 3], [4, 2, 1]]


# -- causal


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_causal_pieces_equal_the_whole(name, plan):
    module = layout(name, True)
    z = latents(module, 7, 2)
    whole, stream = module.decode(z), module.stream(mode="causal", seed=0)
    pieces = [stream.decode(part) for part in z.split(plan, 2)]
    assert [p.shape[2] for p in pieces] == [8 * n - 7 * (i == 0) for i, n in enumerate(plan)]
    torch.testing.assert_close(torch.cat(pieces, 2), whole, rtol=0, atol=1e-12)
    assert stream.flush().shape[2] == 0


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("causal", [True, False])
def test_in_place_equals_functional(name, causal):
    """The pass with gradients is another one: nothing in place, histories concatenated."""
    module = layout(name, causal)
    z = latents(module, 4, 2)
    wanted = module.decode(z.clone().requires_grad_(True))
    assert wanted.requires_grad
    torch.testing.assert_close(module.decode(z), wanted.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("border", [False, True])
@pytest.mark.parametrize("mode", ["causal", "lookahead(0)", "lookahead(2)"])
@pytest.mark.parametrize("name", LAYOUTS_AND_MORE)
def test_float32_streams_as_float64_does(name, mode, border):
    """Fast backends, buffers that shorter pieces share with longer ones, both layouts of them: but for roundings."""
    exact = layout(name, mode == "causal")
    module = TemporalVAE(exact.config)
    module.load_state_dict(exact.state_dict())
    module.requires_grad_(False).pack()
    z = latents(exact, 11, 2).float()
    streams = exact.stream(mode=mode), module.stream(mode=mode, workspace=DecodeWorkspace(border))
    for part in z.split([4, 3, 1, 2, 1], 2):
        want, got = streams[0].decode(part.double()), streams[1].decode(part)
        assert want.shape == got.shape and (not got.numel() or relative(got.double(), want) < 2e-5)
    assert relative(streams[1].flush().double(), streams[0].flush()) < 2e-5 if mode == "lookahead(2)" else True


def test_a_fresh_state_for_every_piece_is_not_the_whole():
    """The naive way: each chunk decoded as a clip of its own loses 7 frames each and shows the wrong ones."""
    for causal in (True, False):
        module = layout("0.9.5", causal)
        z = latents(module, 7)
        whole = module.decode(z)
        naive = [module.decode(part) for part in z.split([4, 3], 2)]
        assert sum(p.shape[2] for p in naive) == whole.shape[2] - 7
        assert relative(naive[1], whole[:, :, -17:]) > 0.1


def test_forgotten_or_exchanged_memory_shows():
    module = layout("0.9.5", True)
    z = latents(module, 4)
    whole = module.decode(z)
    stream = module.stream()
    stream.decode(z[:, :, :2])
    for path in list(stream.state.histories):
        kept = stream.snapshot()
        kept.histories[path].zero_()
        stream.restore(kept)
        got = stream.decode(z[:, :, 2:])
        assert not torch.allclose(got, whole[:, :, 9:], atol=1e-6), path
        stream.reset()
        stream.decode(z[:, :, :2])


# -- look-ahead


@pytest.mark.parametrize("ahead", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("name", LAYOUTS)
def test_lookahead_loses_no_frame(name, ahead):
    """Design: 24 - 8L frames after the first chunk (and the reference's own), 24 a chunk, 8L in the end."""
    module = layout(name, False)
    z = latents(module, 10)
    stream = module.stream(mode=f"lookahead({ahead})")
    counts = [stream.decode(part).shape[2] for part in z.split([4, 3, 3], 2)]
    counts.append(stream.flush().shape[2])
    if ahead <= 3:
        assert counts == [25 - 8 * ahead, 24, 24, 8 * ahead]
    assert sum(counts) == 73
    whole = module.decode(z, mode=f"lookahead({ahead})")
    assert whole.shape == module.decode(z).shape


def test_lookahead_comes_closer_with_every_latent_and_arrives():
    module = layout("0.9.5", False)
    z = latents(module, 13)
    whole = module.decode(z)
    errors = [relative(module.decode(z, mode=f"lookahead({n})"), whole) for n in range(4)]
    assert all(b < 0.9 * a for a, b in itertools.pairwise(errors)), errors
    # 4 blocks of one layer and 3 upsamplers reach 7 + 4 + 2 latents at the most, by halves: all of the clip
    torch.testing.assert_close(module.decode(z, mode="lookahead(13)"), whole, rtol=0, atol=1e-12)


def test_the_end_of_a_lookahead_stream_is_final():
    """At the end nothing is provisional: only the left side is approximate, and a clip that is one call is exact."""
    module = layout("0.9.5", False)
    z = latents(module, 4)
    stream = module.stream(mode="lookahead(2)")
    stream.prime(z[:, :, :1])
    parts = [stream.decode(z[:, :, 1:3]), stream.decode(z[:, :, 3:]), stream.flush()]
    assert [p.shape[2] for p in parts] == [1, 8, 16]
    alone = module.stream(mode="lookahead(4)")
    assert alone.decode(z).shape[2] == 0
    torch.testing.assert_close(alone.flush(), module.decode(z), rtol=0, atol=1e-12)


def test_exact_reaches_both_ways_and_causal_one_way():
    for causal in (True, False):
        module = layout("0.9.5", causal)
        z = latents(module, 5)
        other = z.clone()
        other[:, :, 3] += 1
        changed = (module.decode(z) != module.decode(other)).flatten(3).any(-1)[0].any(0)
        assert changed[17:].all() and bool(changed[:17].any()) is not causal


# -- memory


@pytest.mark.parametrize("mode", ["causal", "lookahead(1)"])
def test_memory_is_of_a_fixed_size_and_place(mode):
    module = layout("0.9.1", mode == "causal")
    stream, sizes = module.stream(mode=mode), set()
    z = latents(module, 31)
    stream.prime(z[:, :, :1])
    for i, part in enumerate(z[:, :, 1:].split(3, 2)):
        stream.decode(part)
        if i > 0:
            places = {p: t.data_ptr() for p, t in stream.state.histories.items() if p != "withheld"}
            sizes.add((stream.state.nbytes, stream.work.nbytes, tuple(sorted(places.items()))))
    assert len(sizes) == 1
    convolutions = sum(m.__class__.__name__ == "CausalConv3d" for m in module.decoder.modules())
    assert len(places) == convolutions


@pytest.mark.parametrize("mode", ["causal", "lookahead(2)"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_snapshots_go_on_as_the_stream_did(name, mode):
    module = layout(name, mode == "causal")
    z, other = latents(module, 10, 2), latents(module, 3, 2, seed=9)
    stream = module.stream(mode=mode, seed=3)
    stream.decode(z[:, :, :4])
    kept = stream.snapshot()
    want = [stream.decode(z[:, :, 4:7]), stream.decode(z[:, :, 7:]), stream.flush()]
    fresh = module.stream(mode=mode, seed=3)
    fresh.restore(StreamState.from_tensors({k: v.clone() for k, v in kept.to_tensors().items()}))
    stream.decode(other)
    stream.restore(kept)
    for again in (stream, fresh):
        got = [again.decode(z[:, :, 4:7]), again.decode(z[:, :, 7:]), again.flush()]
        assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    stream.reset()
    assert torch.equal(stream.decode(z[:, :, :4]), module.stream(mode=mode, seed=3).decode(z[:, :, :4]))


@pytest.mark.parametrize("mode", ["causal", "lookahead(1)"])
def test_lanes(mode):
    """Streams in lockstep are each what they are alone; a viewer who comes takes the lane of one who left."""
    module = layout("0.9.1", mode == "causal")
    a, b, c = (latents(module, 10, 1, seed) for seed in (1, 2, 3))

    def alone(z, seed):
        stream = module.stream(mode=mode, seed=seed)
        return [stream.decode(part) for part in z.split([4, 3, 3], 2)]

    both = module.stream(mode=mode, seed=1)
    first = [both.decode(part) for part in torch.cat([a, b])[:, :, :7].split([4, 3], 2)]
    newcomer = module.stream(mode=mode, seed=1 << 63)
    began = newcomer.decode(c[:, :, :4])
    left, before = both.state.lane(1), both.snapshot()
    both.state.put(1, StreamState.from_tensors(newcomer.snapshot().to_tensors()))  # from another process, say
    second = both.decode(torch.cat([a[:, :, 7:], c[:, :, 4:7]]))
    close = functools.partial(torch.testing.assert_close, rtol=0, atol=1e-12)
    of_a, of_b, of_c = alone(a, 1), alone(b, 1), alone(c, 1 << 63)
    close(torch.cat(first, 2), torch.cat([torch.cat(x[:2], 2) for x in (of_a, of_b)]))
    close(began, of_c[0])
    close(second, torch.cat([of_a[2], of_c[1]]))
    both.state.put(0, both.state.lane(1))
    close(both.decode(torch.cat([c, c])[:, :, 7:]), torch.cat([of_c[2]] * 2))
    for kept, z, wanted in ((left, b, of_b[2]), (before, torch.cat([a, b]), torch.cat([of_a[2], of_b[2]]))):
        elsewhere = module.stream(mode=mode)
        elsewhere.restore(StreamState.from_tensors(kept.to_tensors()))
        close(elsewhere.decode(z[:, :, 7:]), wanted)
    for wrong in (StreamState(both.state.past), both.snapshot(), module.stream(mode=mode).snapshot()):
        with pytest.raises(ValueError, match="expected one lane that has begun as this state has"):
            both.state.put(0, wrong)
    for lane in (-1, 2):
        with pytest.raises(ValueError, match=f"lane: expected 0..1, got {lane}"):
            both.state.put(lane, newcomer.snapshot())
        with pytest.raises(ValueError, match=f"lane: expected 0..1, got {lane}"):
            both.state.lane(lane)
    with pytest.raises(ValueError, match="frames of history"):
        both.state.restore(StreamState(3 - both.state.past))


def test_streams_may_share_scratch_and_a_gradient_pass_may_interrupt():
    module = layout("0.9.5", True)
    a, b = latents(module, 7, 1, 1), latents(module, 7, 1, 2)
    work = DecodeWorkspace()
    one, two = module.stream(workspace=work), module.stream(workspace=work)
    got: tuple[list, list] = ([], [])
    for i, (x, y) in enumerate(zip(a.split(2, 2), b.split(2, 2), strict=True)):
        got[0].append(one.decode(x.clone().requires_grad_(i == 1)).detach())
        got[1].append(two.decode(y))
    for z, parts in zip((a, b), got, strict=True):
        torch.testing.assert_close(torch.cat(parts, 2), module.decode(z), rtol=0, atol=1e-12)


@pytest.mark.parametrize("inside", [True, False])
def test_inference_mode_may_come_and_go(inside):
    module = layout("0.9.5", True)
    z = latents(module, 4)
    stream = module.stream()
    with torch.inference_mode(inside):
        stream.decode(z[:, :, :2])
        kept = stream.snapshot()
    with torch.inference_mode(not inside):
        got = stream.decode(z[:, :, 2:])
        stream.restore(kept)
        assert torch.equal(stream.decode(z[:, :, 2:]), got)


# -- what each release adds (research: "Traps")


@pytest.mark.parametrize("scale", [0.0, 0.025, 0.3])
def test_noise_is_mixed_into_normalised_latents(scale):
    module, plain = layout("0.9.5", True, decode_noise_scale=scale), layout("0.9.5", True, decode_noise_scale=0.0)
    assert module.latents_std.std() > 0.05  # the order matters
    z = latents(module, 3)
    drawn = [noise.normal(7, i, z[0, :, 0].numel(), noise.DECODER).view_as(z[0, :, 0]) for i in range(3)]
    mixed = (1 - scale) * z + scale * torch.stack(drawn, 1)[None].double()
    torch.testing.assert_close(module.decode(z, seed=7), plain.decode(mixed), rtol=0, atol=1e-12)
    if scale:
        assert relative(module.decode(z, seed=8), module.decode(z, seed=7)) > 1e-3


def test_injected_noise_is_one_image_per_stream():
    """A still scene repeats from latent to latent, whatever piece they come in; another seed gives another texture."""
    module = layout("0.9.1", True, decode_noise_scale=0.0)
    z = latents(module, 1).expand(-1, -1, 24, -1, -1)
    stream = module.stream(seed=1)
    pieces = [stream.decode(part) for part in z.split(3, 2)]
    settled = torch.cat(pieces, 2)[:, :, -96:].unflatten(2, (-1, 8))
    torch.testing.assert_close(settled, settled[:, :, :1].expand_as(settled), rtol=0, atol=1e-11)
    assert relative(module.decode(z[:, :, :2], seed=2), module.decode(z[:, :, :2], seed=1)) > 0.01
    images = module.decoder.images(z, 1)
    assert len(images) == 6 and {tuple(i.shape[1:]) for i in images.values()} == {(4, 4), (8, 8), (16, 16)}
    flat = torch.cat([i.flatten() for i in images.values()])
    assert abs(flat.mean()) < 0.2 and abs(flat.std() - 1) < 0.15 and len(flat.unique()) == len(flat)


def test_timestep_constants_follow_the_weights():
    """Scale and shift are computed once and kept, until a weight of the embedders or of a table changes."""
    module = randomise(TemporalVAE(LAYOUTS["0.9.5"]).double(), 6).requires_grad_(False)
    z = latents(module, 2)
    before = module.decode(z)
    assert module.decoder.modulations() is module.decoder.modulations()
    with torch.no_grad():
        module.decoder.time[1][2].bias.add_(0.5)
    changed = module.decode(z)
    assert relative(changed, before) > 1e-3
    torch.testing.assert_close(changed, module.decode(z.clone().requires_grad_(True)).detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_norms_are_in_fp32(dtype):
    """Squares of values beyond 256 overflow in fp16; and bf16 has 8 bits, too few for a mean of squares."""
    from rest_fast.models.vae.layers import normed_silu

    x = (torch.randn(1, 64, 2, 3, 3) * 400).to(dtype)
    want = torch.nn.functional.silu(x.double() / (x.double().square().mean(1, keepdim=True) + 1e-8).sqrt())
    got = normed_silu(x, eps=1e-8)
    torch.testing.assert_close(got.double(), want, rtol=2 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps)


@pytest.mark.parametrize("part", ["encoder_padding", "decoder_padding"])
def test_mirrored_borders_differ_and_stream_as_well(part):
    module, zeros = layout("0.9.0", True, **{part: "reflect"}), layout("0.9.0", True)
    z, x = latents(module, 5), video(module, 17)
    if part == "decoder_padding":
        stream = module.stream()
        whole, other = module.decode(z), zeros.decode(z)
        got = torch.cat([stream.decode(p) for p in z.split([1, 3, 1], 2)], 2)
    else:
        stream = module.encode_stream()
        whole, other = module.encode(x), zeros.encode(x)
        got = torch.cat([stream.encode(p) for p in x.split([9, 8], 2)], 2)
    torch.testing.assert_close(got, whole, rtol=0, atol=1e-12)
    assert relative(whole, other) > 0.01


# -- encode


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("plan", [[1] + [8] * 4, [1, 16, 16], [17, 8, 8], [25, 8]], ids=str)
def test_encode_in_pieces_equals_the_whole(name, plan):
    module = layout(name, True)
    x = video(module, 33, 2)
    stream = module.encode_stream()
    pieces = [stream.encode(part) for part in x.split(plan, 2)]
    torch.testing.assert_close(torch.cat(pieces, 2), module.encode(x), rtol=0, atol=1e-12)
    stream.reset()
    assert torch.equal(stream.encode(x[:, :, :9]), module.encode(x[:, :, :9]))
    kept = stream.snapshot()
    want = stream.encode(x[:, :, 9:17])
    stream.restore(kept)
    assert torch.equal(stream.encode(x[:, :, 9:17]), want)
    with pytest.raises(ValueError, match="video: expected 8n frames, got 9"):
        stream.encode(x[:, :, :9])


# -- refusals


def test_modes_that_a_symmetric_decoder_has_not():
    module = layout("0.9.5", False)
    for call in (lambda: module.stream(mode="causal"), lambda: module.decode(latents(module, 2), mode="causal")):
        with pytest.raises(ValueError, match=r"mode: expected lookahead\(L\) .*not causal .*got 'causal'"):
            call()
    assert str(module.stream().mode) == "lookahead(1)" and str(layout("0.9.5", True).stream().mode) == "causal"


@pytest.mark.parametrize("size", [(64, 48), (16, 32), (33, 64)])
def test_sizes_that_are_no_whole_cells(size):
    module = layout("0.9.5", True)
    with pytest.raises(ValueError, match=rf"divisible by 32, got {size[0]} x {size[1]}"):
        module.encode(torch.zeros(1, 3, 9, *size, dtype=F64))


def test_any_whole_number_of_cells():
    module = layout("0.9.5", True)
    x = torch.rand(1, 3, 9, 32, 96, dtype=F64) * 2 - 1
    z = module.encode(x)
    assert z.shape == (1, 6, 2, 1, 3) and module.decode(z).shape == x.shape


def test_lanes_cannot_change_on_the_way():
    module = layout("0.9.5", False)
    stream = module.stream()
    stream.decode(latents(module, 4, 2))
    before = r"expected lanes, rows and columns \(2, 2, 2\) as before, got"
    with pytest.raises(ValueError, match=before + r" \(1, 2, 2\)"):
        stream.decode(latents(module, 3, 1))
    causal, encode = layout("0.9.5", True).stream(), module.encode_stream()
    causal.decode(latents(module, 1, 2))
    for wrong, got in ((latents(module, 1, 1), r"\(1, 2, 2\)"), (latents(module, 1, 2)[..., :1], r"\(2, 2, 1\)")):
        with pytest.raises(ValueError, match=f"{before} {got}"):
            causal.decode(wrong)
    encode.encode(video(module, 9, 2))
    with pytest.raises(ValueError, match=r"encode: video: expected lanes, rows and columns \(2, 64, 64\) as before"):
        encode.encode(video(module, 8, 1))
    with pytest.raises(ValueError, match="latents: expected"):
        causal.decode(latents(module, 1, 2)[:0])
