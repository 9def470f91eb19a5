"""The motion VAE: what its parts promise, against closed forms; streams of it in pieces and as a whole."""

from __future__ import annotations

import pytest
import torch

from rest_fast.config import ConfigError, MotionVAEConfig, preset
from rest_fast.errors import ArgumentError
from rest_fast.models.vae import TemporalVAE, motion
from rest_fast.models.vae.layers import name_memories
from rest_fast.models.vae.state import StreamState
from rest_fast.ops.move_and_paint import moved, moved_and_painted, whole_flow

SMALL = MotionVAEConfig(
    latent_channels=16,
    encoder_channels=(4, 6, 8, 8),
    photo_channels=(6, 8, 8, 8),
    flow_channels=(6, 8, 8, 8),
    code_width=12,
)


def small_vae(size: int = 256, **changes: float) -> TemporalVAE:
    """With weights of its own in the parts that begin as zero, so that it moves and paints."""
    torch.manual_seed(1)
    config = MotionVAEConfig(**{**vars(SMALL), "patch_size": size // 4, **changes})
    vae = TemporalVAE(preset("demo").replace(vae=config, height=size, width=size, dit__positionwise_io=False))
    for part in (
        vae.decoder.flow.coarse,
        vae.decoder.flow.inner,
        vae.decoder.painter.conv_out,
        vae.decoder.flow.memory,
    ):
        for parameter in part.parameters():
            torch.nn.init.normal_(parameter, std=0.2)
    return vae.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def vae():
    return small_vae()


def smooth_photo(size: int = 256) -> torch.Tensor:
    small = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.nn.functional.interpolate(small, (size, size), mode="bicubic").clamp(-1, 1)[:, :, None]


def in_levels(video: torch.Tensor) -> torch.Tensor:
    """[B, 3, T, H, W] -> [B, T, H, W, 3], in 0..255."""
    return ((video.float() + 1) * 127.5).clamp(0, 255).permute(0, 2, 3, 4, 1)


def test_codes_are_a_latent_in_another_order():
    latents = torch.arange(2 * 24 * 3 * 16.0).view(2, 24, 3, 4, 4)
    codes = motion.to_codes(latents)
    assert codes.shape == (2, 24, 3, 4, 4)
    assert torch.equal(codes[1, 9, 2], latents[1, 5, 1])  # frame 1 of latent 1, channel 2: 1 x 3 + 2
    assert torch.equal(motion.from_codes(codes), latents)


def test_a_new_decoder_shows_the_photo_itself():
    torch.manual_seed(0)
    vae = TemporalVAE(preset("demo").replace(vae=SMALL, height=256, width=256, dit__positionwise_io=False)).eval()
    photo = smooth_photo()
    with torch.no_grad():
        video = vae.decode(torch.randn(1, 16, 3, 4, 4), reference=photo)
    # no flow; paint of nothing over a photo blurred by 9 pixels of 128, a share of sigmoid(-3) = 0.05, twice at most
    assert (video - photo).abs().max() < 0.1
    assert (video - photo)[..., :30, :].abs().max() < 0.05


@pytest.mark.parametrize("lanes", [1, 2])
def test_a_stream_that_is_given_the_photos_features_does_not_look_at_it(vae, monkeypatch, lanes):
    """And shows the same: the features are all that a decoder makes of its photo alone."""
    photo, latents = smooth_photo(), torch.randn(lanes, 16, 3, 4, 4, generator=torch.Generator().manual_seed(2))
    latents[:, :, 0] = latents[:1, :, 0]
    features = vae.photo_features(latents[:1, :, :1], photo)
    plain = vae.stream(reference=photo).decode(latents)
    monkeypatch.setattr(motion.PhotoBranch, "forward", lambda *_: pytest.fail("the photo was looked at"))
    given = vae.stream(reference=photo, features=features)
    rounding = {"atol": 1e-5 if lanes > 1 else 0, "rtol": 0}  # the convolutions of one photo or of two equal ones
    torch.testing.assert_close(given.decode(latents), plain, **rounding)
    given.reset()
    torch.testing.assert_close(given.decode(latents), plain, **rounding)  # nothing was written into what was given


def test_a_heads_pose_is_smoothed_twice_and_nothing_else_is():
    """Against the closed form: behind a step at frame 1, frame n is at 1 - (1 - a)^n (1 + n a)."""
    smoothing, g = motion.PoseFilter(2, 0.4), torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(32, 6, generator=g))[0]
    smoothing.directions.copy_(basis[:, :5])
    still, step, lips = basis @ torch.randn(6, generator=g), basis[:, :5] @ torch.arange(1.0, 6), basis[:, 5]
    n, speech = torch.arange(25.0), torch.randn(25, generator=g)
    spoken = still + speech[:, None] * lips
    given = spoken + (n > 0)[:, None] * step
    want = spoken + (1 - 0.6**n * (1 + 0.4 * n))[:, None] * step
    state = StreamState()
    pieces = [smoothing(codes.view(1, -1, 2, 4, 4), state) for codes in given.split([1, 8, 16])]
    torch.testing.assert_close(torch.cat(pieces, 1).view(25, 32), want)


def test_decoders_of_one_photo_differ_by_the_smoothing_alone(vae):
    """The decoder smooths, and a stream remembers across pieces and in snapshots what it needs for that."""
    with_filter = small_vae(pose_alpha=0.4)
    smoothing = with_filter.decoder.pose
    smoothing.directions.copy_(torch.linalg.qr(torch.randn(32, 5, generator=torch.Generator().manual_seed(0)))[0])
    photo, latents = smooth_photo(), torch.randn(2, 16, 4, 4, 4, generator=torch.Generator().manual_seed(2))
    codes = smoothing(motion.to_codes(latents)[:, 7:], StreamState())
    codes = torch.cat([codes[:, :1].expand(-1, 7, -1, -1, -1), codes], 1)
    want = vae.stream(reference=photo).decode(motion.from_codes(codes))
    stream = with_filter.stream(reference=photo)
    parts = [stream.decode(latents[:, :, :2])]
    kept = stream.snapshot()
    stream.decode(latents[:, :, :2])
    stream.restore(kept)
    parts.append(stream.decode(latents[:, :, 2:]))
    # convolutions of other shapes round otherwise, by parts of 1e-6 of flows and colours
    torch.testing.assert_close(torch.cat(parts, 2), want, atol=1e-4, rtol=0)
    assert (vae.stream(reference=photo).decode(latents) - want).abs().max() > 0.1


def test_a_constant_flow_moves_the_photo_by_whole_pixels():
    photo = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    flow = torch.zeros(4, 2, 64, 64)
    flow[:, 0], flow[:, 1] = 3 / 64, -5 / 64  # what is shown here lies 3 pixels to the right and 5 above
    out = moved(photo, flow)
    want = photo.roll((5, -3), (2, 3)).repeat_interleave(2, 0)
    torch.testing.assert_close(out[..., 5:, :-3], want[..., 5:, :-3], atol=1e-5, rtol=0)
    part = moved(photo, flow[..., 10:30, 20:44], (10, 20, 20, 24))
    torch.testing.assert_close(part, out[..., 10:30, 20:44], atol=1e-5, rtol=0)


def test_maps_are_composed_as_written():
    """Constant maps, at two sizes of the photo: the share of the paint in the window's middle, and outside of it."""
    window = SMALL.window
    for size in (128, 256):
        photo = torch.full((1, 3, size, size), 0.5)
        flow, paint, inner = (torch.zeros(1, *shape) for shape in ((2, 32, 32), (4, 32, 32), (4, 80, 80)))
        paint[:, 0], paint[:, 1:] = 0.75, 0.75 * 0.1
        inner[:, 0], inner[:, 1:] = 0.25, 0.25 * 0.9
        out = moved_and_painted(photo, flow, paint, torch.zeros(1, 2, 40, 40), inner, window)
        outside = 0.5 + 0.75 * (0.1 - 0.5)
        torch.testing.assert_close(out[0, 0, 4, 4], torch.tensor(outside))
        middle = size * (16 + 20) // 64, size * (12 + 20) // 64
        torch.testing.assert_close(out[0, 0, middle[0], middle[1]], torch.tensor(outside + 0.25 * (0.9 - outside)))


def test_the_inner_flow_is_added_in_the_window_and_fades_at_its_rim():
    flow = whole_flow(torch.zeros(1, 2, 32, 32), torch.ones(1, 2, 40, 40), (128, 128), SMALL.window)
    assert flow[..., :32, :].abs().max() == 0 and flow[..., :24].abs().max() == 0
    assert flow[0, :, 72, 64].tolist() == [1, 1]
    row = flow[0, 0, 72, 24:64]
    assert torch.equal(row[:9], torch.arange(9) / 8) and (row[9:] == 1).all()


def test_all_parts_look_at_the_same_window():
    """Of 64ths of the picture: photo branch and flow branch cut their maps there, the painter gets the photo there."""
    torch.manual_seed(0)
    decoder = motion.MotionDecoder(SMALL)  # a new one: no flow
    top, left, rows, columns = SMALL.window
    assert top != left
    given, made = {}, {}

    def watch(name: str, part: torch.nn.Module) -> None:
        def note(_, args, out) -> None:
            given[name], made[name] = args, out

        part.register_forward_hook(note)

    parts = {"photo's": decoder.photo.up[0], "middle": decoder.flow.blocks[1]}
    parts |= {"larger": decoder.flow.larger[2], "painter": decoder.painter}
    for name, part in parts.items():
        watch(name, part)
    photo, codes = smooth_photo()[:, :, 0], torch.randn(1, 1, 2, 4, 4)
    with torch.no_grad():
        name_memories(decoder)
        state = StreamState()
        decoder.look(photo, codes, state)
        decoder.maps(photo, codes, state)

    def there(x, scale):
        a, b, c, d = (int(n * scale) for n in (top, top + rows, left, left + columns))
        return x[..., a:b, c:d]

    seen = torch.nn.functional.silu(there(made["photo's"], 1))
    torch.testing.assert_close(decoder.features(state)[0], decoder.photo.out[0](seen).detach())
    torch.testing.assert_close(given["larger"][0], there(made["middle"], 0.5))
    torch.testing.assert_close(given["painter"][1], there(motion.at_work_size(photo), 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("cuts", [(1, 1, 1, 1), (2, 2), (1, 3)])
def test_pieces_give_the_whole(vae, cuts):
    z = torch.randn(1, 16, 5, 4, 4, generator=torch.Generator().manual_seed(0))
    photo = smooth_photo()
    whole = vae.decode(z, reference=photo)
    assert whole.shape == (1, 3, 33, 256, 256)
    assert (whole[:, :, 9] - whole[:, :, 10]).abs().max() > 0.05  # it does move
    stream = vae.stream(reference=photo)
    parts = [stream.decode(piece) for piece in z.split((1, *cuts), 2)]
    torch.testing.assert_close(torch.cat(parts, 2), whole, atol=1e-4, rtol=0)  # sums of other sizes round otherwise


def test_lanes_have_photos_of_their_own(vae):
    z = torch.randn(2, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    photos = torch.cat([smooth_photo(), -smooth_photo()])
    both = vae.decode(z, reference=photos)
    for lane in range(2):
        alone = vae.decode(z[lane : lane + 1], reference=photos[lane : lane + 1])
        torch.testing.assert_close(both[lane : lane + 1], alone, atol=1e-4, rtol=0)


def test_pictures_are_the_video_in_bytes(vae):
    """By the op on maps, where decode goes through the functional reference."""
    z = torch.randn(2, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    photos = torch.cat([smooth_photo(), -smooth_photo()])
    video = vae.decode(z, reference=photos)
    stream = vae.stream(reference=photos)
    pictures = torch.cat([stream.pictures(piece) for piece in z.split((1, 2), 2)], 1)
    assert pictures.shape == (2, 17, 256, 256, 3) and pictures.dtype == torch.uint8
    assert (pictures - in_levels(video)).abs().max() < 0.5 + 0.05  # sums of other sizes: 1e-4 of -1..1


def test_convolutions_in_bfloat16(vae):
    """Eight bits of a number: a level or two of 256. What a stream remembers stays float32, so that it can move on."""
    z, photo = torch.randn(1, 16, 4, 4, 4, generator=torch.Generator().manual_seed(0)), smooth_photo()
    whole = vae.stream(reference=photo)
    try:
        vae.convolve_in(torch.bfloat16)
        low = vae.stream(reference=photo)
    finally:
        vae.convolve_in(None)
    one, other = (torch.cat([s.pictures(piece) for piece in z.split((1, 3), 2)], 1).float() for s in (whole, low))
    assert (one[:, 1:] - one[:, :1]).abs().mean() > 3  # it moves
    assert 0 < (one - other).abs().mean() < 0.3 and (one - other).abs().max() <= 6
    assert {x.dtype for x in low.state.histories.values()} == {torch.float32}
    try:
        vae.convolve_in(torch.bfloat16)
        video = vae.decode(z, reference=photo)
    finally:
        vae.convolve_in(None)
    assert (other - in_levels(video)).abs().max() < 0.5 + 0.05
    whole.restore(low.snapshot())
    again = whole.pictures(z[:, :, -1:]).float()
    assert (again - low.pictures(z[:, :, -1:]).float()).abs().max() <= 6


def test_weights_in_bfloat16():
    """Places stay float32 in both, or a photo of noise would show it; colours are rounded to 8 bits."""
    vae = small_vae().to(torch.bfloat16)
    z = torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    photo = (torch.rand(1, 3, 1, 256, 256, generator=torch.Generator().manual_seed(1)) * 2 - 1).bfloat16()
    video = vae.decode(z, reference=photo)
    assert video.dtype == vae.encode(photo).dtype == torch.bfloat16
    pictures = vae.stream(reference=photo).pictures(z)
    assert (pictures - in_levels(video)).abs().max() <= 1  # half a level by each rounding


def test_the_past_reaches_two_frames(vae):
    """The memory is a convolution over three frames: of what changes now, the third frame from here knows nothing."""
    photo, z = smooth_photo(), torch.randn(1, 16, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    codes = motion.to_codes(z).clone()
    codes[:, 12] += 1
    one, other = (vae.decode(x, reference=photo) for x in (z, motion.from_codes(codes)))
    # frame 12 of the codes is the 6th shown: the first latent, of 8, is one frame
    changed = [(one[:, :, i] - other[:, :, i]).abs().max() > 1e-6 for i in range(17)]
    assert changed == [5 <= i <= 7 for i in range(17)]


def test_a_snapshot_goes_on_as_the_stream(vae):
    z = torch.randn(1, 16, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    stayed, moved = (vae.stream(reference=smooth_photo()) for _ in range(2))
    stayed.decode(z[:, :, :2])
    moved.restore(StreamState.from_tensors(stayed.snapshot().to_tensors()))
    assert torch.equal(stayed.decode(z[:, :, 2:]), moved.decode(z[:, :, 2:]))


def test_the_encoder_sees_each_frame_alone(vae):
    video = torch.rand(1, 3, 17, 256, 256, generator=torch.Generator().manual_seed(0)) * 2 - 1
    z = vae.encode(video)
    assert z.shape == (1, 16, 3, 4, 4)
    stream = vae.encode_stream()
    parts = torch.cat([stream.encode(video[:, :, :9]), stream.encode(video[:, :, 9:])], 2)
    torch.testing.assert_close(parts, z, atol=1e-5, rtol=1e-4)
    codes = motion.to_codes(z)
    assert torch.equal(codes[:, 0], codes[:, 7])  # the first frame stands for 8
    changed = video.clone()
    changed[:, :, 12] *= -1
    again = motion.to_codes(vae.encode(changed))
    differs = [(codes[:, i] - again[:, i]).abs().max() > 1e-5 for i in range(24)]
    assert differs == [i == 19 for i in range(24)]


def test_the_photo_is_needed_and_its_size_is_the_models(vae):
    with pytest.raises(ArgumentError, match="reference: expected the photo, which every frame is made of; got none"):
        vae.decode(torch.zeros(1, 16, 1, 4, 4))
    with pytest.raises(ArgumentError, match=r"expected \[B, 3, T, 256, 256\]"):
        vae.decode(torch.zeros(1, 16, 1, 4, 4), reference=torch.zeros(1, 3, 1, 128, 128))
    with pytest.raises(ArgumentError, match="4 x 4 cells of 64"):
        TemporalVAE(preset("demo").replace(vae=SMALL, height=512, width=512, dit__positionwise_io=False))


def test_a_photo_of_512_is_moved_by_the_same_maps(vae):
    """Only the photo is larger: what is shown of a smooth one is the same, seen at twice the size."""
    large = small_vae(512)
    large.load_state_dict(vae.state_dict())
    z, photo = torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(0)), smooth_photo(512)
    small = torch.nn.functional.interpolate(photo[:, :, 0], (256, 256), mode="area")[:, :, None]
    shown = large.decode(z, reference=photo)
    assert shown.shape == (1, 3, 9, 512, 512)
    reduced = torch.nn.functional.avg_pool3d(shown, (1, 2, 2))
    assert (reduced - vae.decode(z, reference=small)).abs().mean() < 0.01


def test_what_a_configuration_may_not_say():
    for changes, says in [
        ({"latent_channels": 20}, "vae.latent_channels: expected a multiple of 8, got 20"),
        ({"window": (30, 12, 40, 40)}, "vae.window: expected even numbers, inside of 64 x 64"),
        ({"flow_channels": (8, 8, 8)}, "vae.flow_channels: expected 4 entries"),
        ({"patch_size": 40}, "vae.patch_size: expected a multiple of 32, got 40"),
    ]:
        with pytest.raises(ConfigError, match=says):
            MotionVAEConfig(**changes)
