"""A VAE whose latents carry motion alone: every frame is the photo itself, moved, and painted where it must be.

A frame's code is [c, 4, 4]; a latent holds the codes of its 8 frames, stacked as channels [8 c, 4, 4]. The decoder
sees the photo once a stream (:class:`PhotoBranch`). For each frame the :class:`FlowBranch` turns the codes of frame and
photo into a flow, coarse for the whole picture and finer in a window around eyes and mouth, and the :class:`Painter`
fills in what the photo does not show: the inside of a mouth, a lid, what a turned head uncovers. Flow and paint
are small maps; :mod:`rest_fast.ops.move_and_paint` applies them to the photo at its full size.
"""

from __future__ import annotations

import itertools
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import nn

from rest_fast import ops
from rest_fast.config import TEMPORAL, MotionVAEConfig
from rest_fast.errors import ArgumentError
from rest_fast.models.vae.family import Decoder
from rest_fast.models.vae.layers import Piece
from rest_fast.models.vae.state import REFERENCE, StreamState
from rest_fast.ops.derived import frozen
from rest_fast.ops.move_and_paint import moved, moved_and_painted, scaled, whole_flow

CELLS = 4  # of a code along one side
WORK = 128  # pixels a side at which the photo branch looks, and the painter paints
FLOW_UNIT = 0.125  # sides of the picture: a flow of one as the network writes it
CLOSED = -3.0  # where the share of paint begins, before the sigmoid
BLUR = 9  # pixels of 128: paint is what must be added to the moved photo, blurred so
STILL = "still"  # among a stream's histories: the code of the photo
FEATURES = "photo features"  # and what the photo branch made of it
POSE = "pose"  # and the pose of the last frame, behind either filter
POSE_LABELS = 5  # numbers that say where a head is
Modulation = tuple[torch.Tensor, torch.Tensor]  # scale and shift of features, [N, C]


class Maps(NamedTuple):
    """What :mod:`rest_fast.ops.move_and_paint` makes N frames of, beside the photo."""

    flow: torch.Tensor  # [N, 2, 32, 32]
    paint: torch.Tensor  # [N, 4, 32, 32]: share in 0..1, and the paint times its share
    inner_flow: torch.Tensor  # [N, 2, rows, columns], of the window
    inner_paint: torch.Tensor  # [N, 4, 2 rows, 2 columns]

    def shown(self, photo: torch.Tensor, window: tuple[int, ...]) -> torch.Tensor:
        """Frames [N, 3, H, W] of photos [B, 3, H, W]. Differentiable."""
        return moved_and_painted(photo, *self, window)


def conv(channels: int, out_channels: int, size: int = 3) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, size, padding=size // 2)


def convolve(
    layer: nn.Conv2d,
    x: torch.Tensor,
    added: torch.Tensor | None = None,
    modulation: Modulation | tuple[None, None] = (None, None),
    *,
    silu_before: bool = False,
    silu_after: bool = False,
) -> torch.Tensor:
    """A layer of 3 x 3 with what is around it (:mod:`rest_fast.ops.conv3x3`): in place on a CPU, in float32, where
    nothing learns."""
    weight, innermost = layer.weight, torch.channels_last
    silu = {"silu_before": silu_before, "silu_after": silu_after}
    wide = x.is_cpu and x.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
    if not wide or order_of(weight) is not innermost or torch.is_grad_enabled() or not frozen(weight):
        return ops.functional.convolved(x, weight, layer.bias, added, *modulation, **silu)
    shape = (len(x), layer.out_channels, *x.shape[2:])
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=innermost)
    maps = [None if y is None else y.contiguous(memory_format=innermost) for y in (x, added)]
    ops.conv3x3(maps[0], weight, layer.bias, maps[1], *modulation, out, **silu)
    return out


class Residual(nn.Module):
    """x + conv(silu(conv(silu(x)))), near to x at first."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1, self.conv2 = conv(channels, channels), conv(channels, channels)
        with torch.no_grad():
            self.conv2.weight.mul_(0.2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return convolve(self.conv2, convolve(self.conv1, x, silu_before=True, silu_after=True), x)


class Larger(nn.Module):
    """[N, C, h, w] -> [N, C', 2h, 2w]."""

    def __init__(self, channels: int, out_channels: int):
        super().__init__()
        self.up, self.conv = conv(channels, 4 * out_channels, 1), conv(out_channels, out_channels)

    def forward(
        self, x: torch.Tensor, seen: torch.Tensor, modulation: Modulation | tuple[None, None] = (None, None)
    ) -> torch.Tensor:
        """``seen`` [B, C', 2h, 2w], of N / B frames each, is added; then follow scale and shift."""
        return convolve(self.conv, F.pixel_shuffle(self.up(F.silu(x)), 2), seen, modulation, silu_before=True)


def to_codes(latents: torch.Tensor) -> torch.Tensor:
    """Latents [B, 8 c, n, 4, 4] -> the codes of their frames, [B, 8 n, c, 4, 4]."""
    return latents.unflatten(1, (TEMPORAL, -1)).permute(0, 3, 1, 2, 4, 5).flatten(1, 2)


def from_codes(codes: torch.Tensor) -> torch.Tensor:
    """Codes of frames [B, 8 n, c, 4, 4] -> latents [B, 8 c, n, 4, 4]."""
    return codes.unflatten(1, (-1, TEMPORAL)).permute(0, 2, 3, 1, 4, 5).flatten(1, 2)


class MotionEncoder(nn.Module):
    """[B, 3, 1 + 8n, H, W] -> [B, 8 c, 1 + n, 4, 4]: what moves in each frame, of whom it does not matter.

    Each frame is seen twice, both times at 64 x 64: as a whole, and the part around the mouth. The first frame of a
    clip counts as 8 equal ones.
    """

    MOUTH = (0.50, 0.25, 0.40, 0.50)  # top, left, rows, columns, in sides of the picture

    def __init__(self, config: MotionVAEConfig):
        super().__init__()
        self.frame_channels = config.latent_channels // TEMPORAL
        self.whole, self.mouth = (self._tower(config.encoder_channels) for _ in range(2))
        self.out = conv(2 * config.encoder_channels[-1], self.frame_channels, 1)

    @staticmethod
    def _tower(widths: tuple[int, ...]) -> nn.Sequential:
        layers: list[nn.Module] = []
        for channels, wider in zip((3, *widths), widths):
            layers += [nn.Conv2d(channels, wider, 4, 2, 1), nn.GroupNorm(1, wider), Residual(wider), nn.SiLU()]
        return nn.Sequential(*layers)

    def codes(self, frames: torch.Tensor) -> torch.Tensor:
        """Frames [N, 3, H, W] in -1..1 -> [N, c, 4, 4]."""
        top, left, rows, columns = (round(share * frames.shape[2]) for share in self.MOUTH)
        mouth = frames[..., top : top + rows, left : left + columns]
        whole, mouth = (resized(x, 64) for x in (frames, mouth))
        return cast(torch.Tensor, self.out(torch.cat([self.whole(whole), self.mouth(mouth)], 1)))

    def forward(self, video: torch.Tensor, state: StreamState) -> torch.Tensor:
        codes = self.codes(video.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(video), -1))
        if not state.started:
            codes = torch.cat([codes[:, :1].expand(-1, TEMPORAL - 1, -1, -1, -1), codes], 1)
        return from_codes(codes)


class PhotoBranch(nn.Module):
    """What the flow branch needs to know of a photo, once a stream: maps of ``flow_channels``, of 64 cells a side (in
    the window), 32, 16 and 8."""

    def __init__(self, config: MotionVAEConfig):
        super().__init__()
        widths, self.window = config.photo_channels, config.window
        self.conv_in = conv(12, widths[0])
        self.blocks = nn.ModuleList(Residual(width) for width in widths)
        self.down = nn.ModuleList(nn.Conv2d(a, b, 4, 2, 1) for a, b in itertools.pairwise(widths))
        self.up = nn.ModuleList(Larger(b, a) for a, b in itertools.pairwise(widths))
        self.out = nn.ModuleList(conv(a, b) for a, b in zip(widths, config.flow_channels))

    def forward(self, photo: torch.Tensor) -> list[torch.Tensor]:
        """[B, 3, 128, 128] in -1..1 -> four maps, the largest first."""
        x, down = convolve(self.conv_in, F.pixel_unshuffle(photo, 2)), []
        for i, block in enumerate(self.blocks):
            x = block(self.down[i - 1](F.silu(x)) if i else x)
            down.append(x)
        maps = [down[-1]]
        for i in reversed(range(len(self.up))):
            maps.insert(0, self.up[i](maps[0], down[i]))
        maps[0] = crop(maps[0], self.window)
        return [convolve(out, x, silu_before=True) for out, x in zip(self.out, maps)]


class CausalMemory(nn.Module):
    """x plus a convolution in time over each frame and the two before it, against flicker."""

    def __init__(self, channels: int):
        super().__init__()
        self.path = ""  # set by name_memories
        self.conv = nn.Conv3d(channels, channels, (3, 1, 1))
        nn.init.zeros_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: torch.Tensor, state: StreamState) -> torch.Tensor:
        """[B, C, T, h, w] -> the same; at the start the first frame is its own past."""
        before = state.histories.get(self.path)
        past = torch.cat([x[:, :, :1].expand(-1, -1, 2, -1, -1) if before is None else before, x], 2)
        last = past[:, :, -2:].to(self.conv.weight.dtype)  # whatever the convolutions' own dtype
        state.histories[self.path] = last if last.requires_grad else last.clone()
        return x + cast(torch.Tensor, self.conv(F.silu(past)))


class PoseFilter(nn.Module):
    """Keeps a generated head from trembling.

    The part of the codes that says where the head is passes two exponential smoothings, ``y += alpha (x - y)``, and so
    comes 2 (1 - alpha) / alpha frames late. The rest, lips above all, is left as it is.

    ``directions`` [c 16, 5] are orthonormal. They are no parameters: training sets them to what the codes stand for;
    until then they are zero, and nothing is smoothed.
    """

    directions: torch.Tensor

    def __init__(self, channels: int, alpha: float):
        super().__init__()
        self.alpha = alpha
        self.register_buffer("directions", torch.zeros(channels * CELLS**2, POSE_LABELS))

    def forward(self, codes: torch.Tensor, state: StreamState) -> torch.Tensor:
        """Codes [B, T, c, 4, 4] -> the same; at the start the first frame's pose is the past."""
        given = codes.flatten(2) @ self.directions  # [B, T, 5]
        first, second = state.histories.get(POSE, given[:, :1].expand(-1, 2, -1)).unbind(1)
        smooth = []
        for pose in given.unbind(1):
            first = torch.lerp(first, pose, self.alpha)
            second = torch.lerp(second, first, self.alpha)
            smooth.append(second)
        state.histories[POSE] = torch.stack([first, second], 1)
        change = (torch.stack(smooth, 1) - given) @ self.directions.T
        return codes + change.unflatten(2, codes.shape[2:])


class FlowBranch(nn.Module):
    """Codes and maps of the photo -> flow, and the features that the painter goes on with."""

    def __init__(self, config: MotionVAEConfig):
        super().__init__()
        fine, middle, low, lowest = self.channels = config.flow_channels
        top, left, rows, columns = config.window
        self.window = (top // 2, left // 2, rows // 2, columns // 2)
        codes = 3 * config.latent_channels // TEMPORAL
        width = config.code_width
        self.code = nn.Sequential(nn.Linear(codes * CELLS**2, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.modulation = nn.Linear(width, 2 * (lowest + low + middle + fine))
        self.place = conv(codes, lowest, 1)
        self.memory = CausalMemory(lowest)
        self.first = nn.Sequential(Residual(lowest), Residual(lowest))
        self.larger = nn.ModuleList([Larger(lowest, low), Larger(low, middle), Larger(middle, fine)])
        self.blocks = nn.ModuleList([Residual(low), Residual(middle), Residual(fine)])
        self.coarse, self.inner = conv(middle, 6), conv(fine, 2)
        for last in (self.coarse, self.inner):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)

    def forward(
        self, codes: torch.Tensor, still: torch.Tensor, maps: list[torch.Tensor], state: StreamState
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Codes [B, T, c, 4, 4] of frames and [B, 1, c, 4, 4] of the photo ->

        coarse [B T, 6, 32, 32] (flow, share of paint before its sigmoid, paint), inner flow [B T, 2, rows, columns] and
        features [B T, C, rows, columns] of the window.
        """
        b, t = codes.shape[:2]
        told = self._told(codes, still)
        x, (low, middle, fine) = self._lowest(told, maps[3])
        x = self.memory(x.unflatten(0, (b, t)).transpose(1, 2), state).transpose(1, 2).flatten(0, 1)
        x = self.first(x)
        x = self.blocks[0](self.larger[0](x, maps[2], low))
        x = self.blocks[1](self.larger[1](x, maps[1], middle))
        coarse = convolve(self.coarse, x, silu_before=True)
        x = self.blocks[2](self.larger[2](crop(x, self.window), maps[0], fine))
        return coarse, FLOW_UNIT * convolve(self.inner, x, silu_before=True), x

    def remember(self, codes: torch.Tensor, still: torch.Tensor, maps: list[torch.Tensor], state: StreamState) -> None:
        """Frames that came before, of which nothing is shown: codes [B, T, c, 4, 4]."""
        x, _ = self._lowest(self._told(codes, still), maps[3])
        self.memory(x.unflatten(0, codes.shape[:2]).transpose(1, 2), state)

    @staticmethod
    def _told(codes: torch.Tensor, still: torch.Tensor) -> torch.Tensor:
        """[B, T, 3 c, 4, 4]: the codes of frame and photo, and how they differ."""
        return torch.cat([codes, still.expand_as(codes), codes - still], 2)

    def _lowest(self, told: torch.Tensor, photo: torch.Tensor) -> tuple[torch.Tensor, list[Modulation]]:
        """Features [B T, C, 8, 8], and the modulations of the three larger maps."""
        widths = self.channels[::-1]
        scales, shifts = self.modulation(self.code(told.flatten(2))).flatten(0, 1).chunk(2, 1)
        scales, shifts = ([x.contiguous() for x in y.split(widths, 1)] for y in (1 + scales, shifts))
        (scale, *_), (shift, *_), others = scales, shifts, list(zip(scales, shifts))[1:]
        places = F.interpolate(self.place(told.flatten(0, 1)), scale_factor=2.0, mode="nearest")
        both = (places.unflatten(0, (-1, told.shape[1])) + photo[:, None]).flatten(0, 1)
        return torch.addcmul(shift[..., None, None], both, scale[..., None, None]), others


class Painter(nn.Module):
    """What the photo does not show, in the window: share and paint at 128 px a side of the picture."""

    def __init__(self, config: MotionVAEConfig):
        super().__init__()
        width = config.flow_channels[0]
        self.conv_in = conv(width + 12, width)
        self.blocks = nn.Sequential(Residual(width), Residual(width))
        self.conv_out = conv(width, 16)
        nn.init.zeros_(self.conv_out.weight)
        nn.init.zeros_(self.conv_out.bias)

    def forward(self, x: torch.Tensor, moved: torch.Tensor) -> torch.Tensor:
        """Features [N, C, rows, columns] and the moved photo [N, 3, 2 rows, 2 columns] -> share in 0..1, and paint in
        the colours of the moved photo times its share: [N, 4, ...] of the moved photo's size."""
        seen = F.pixel_unshuffle(moved, 2).to(x.dtype, memory_format=order_of(x))
        y = self.blocks(convolve(self.conv_in, torch.cat([x, seen], 1)))
        return shared(F.pixel_shuffle(convolve(self.conv_out, y, silu_before=True), 2), blur(moved))


def shared(y: torch.Tensor, colours: torch.Tensor) -> torch.Tensor:
    """What a network writes [N, 4, h, w] -> share, and paint beside these colours [N, 3, h, w] times its share."""
    share, paint = y.split([1, 3], 1)
    share = (share + CLOSED).sigmoid()
    return torch.cat([share, share * (paint + colours).clamp(-1, 1)], 1)


class MotionDecoder(Decoder):
    """[B, 8 c, n, 4, 4] -> [B, 3, 8n (- 7 at the start), H, W]."""

    takes_photo = True
    mixed = True

    def __init__(self, config: MotionVAEConfig):
        super().__init__()
        self.window = config.window
        self.photo, self.flow, self.painter = PhotoBranch(config), FlowBranch(config), Painter(config)
        self.pose = PoseFilter(config.latent_channels // TEMPORAL, config.pose_alpha) if config.pose_alpha < 1 else None

    def pack(self) -> None:
        """Channels last: all maps behind a convolution of such weights have this order, too, and are convolved faster
        (:func:`convolve`)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)

    def forward(self, z: torch.Tensor, state: StreamState) -> torch.Tensor:
        photo, maps = self.drawn(z, state)
        return maps.shown(photo, self.window).to(z.dtype).unflatten(0, (len(z), -1)).transpose(1, 2)

    def run(self, z: torch.Tensor, piece: Piece, *, pictures: bool) -> torch.Tensor:
        with convolutions_in(piece.dtype, z):
            photo, maps = self.drawn(z, piece.state)
        if not pictures:
            return maps.shown(photo, self.window).to(z.dtype).unflatten(0, (len(z), -1)).transpose(1, 2)
        out = torch.empty(len(maps.flow), *photo.shape[2:], 3, dtype=torch.uint8, device=z.device)
        ops.move_and_paint(*(x.contiguous() for x in (photo, *maps)), out, window=self.window)
        return out.unflatten(0, (len(z), -1))

    def drawn(self, z: torch.Tensor, state: StreamState) -> tuple[torch.Tensor, Maps]:
        """The photo [B, 3, H, W], and the maps of its frames, in float32 at least. At the start of a stream the first
        latent is the photo's."""
        reference = state.histories.get(REFERENCE)
        if reference is None:
            raise ArgumentError("decode: reference: expected the photo, which every frame is made of; got none")
        photo, codes = reference[:, :, 0].to(z), to_codes(z)
        if not state.started:
            codes = codes[:, TEMPORAL - 1 :]
            if STILL not in state.histories:
                self.look(photo, codes[:, :1], state)
        if self.pose is not None:
            codes = self.pose(codes, state)
        return wide(photo), Maps(*(wide(x) for x in self.maps(photo, codes, state)))

    def photo_features(self, z: torch.Tensor, photo: torch.Tensor) -> dict[str, torch.Tensor]:
        state = StreamState()
        with convolutions_in(self.dtype, z):
            self.look(photo, to_codes(z)[:, TEMPORAL - 1 :], state)
        return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.histories.items()}

    def look(self, photo: torch.Tensor, still: torch.Tensor, state: StreamState) -> None:
        """Remember a photo [B, 3, H, W] and its code [B, 1, c, 4, 4], at the start of a stream."""
        state.histories[STILL] = still
        for i, features in enumerate(self.photo(at_work_size(photo))):
            state.histories[f"{FEATURES} {i}"] = features.to(still.dtype)

    @staticmethod
    def features(state: StreamState) -> list[torch.Tensor]:
        """What :meth:`look` made of the photo."""
        return [state.histories[f"{FEATURES} {i}"] for i in range(4)]

    def maps(self, photo: torch.Tensor, codes: torch.Tensor, state: StreamState) -> Maps:
        """Of the frames of codes [B, T, c, 4, 4], behind :meth:`look`."""
        coarse, inner_flow, x = self.flow(codes, state.histories[STILL], self.features(state), state)
        flow, paint = coarse.split([2, 4], 1)
        # eight bits of a place are an eighth of a pixel of 128
        planes = torch.contiguous_format  # in this order two channels are enlarged four times as fast
        flow = wide((FLOW_UNIT * flow).contiguous(memory_format=planes))
        inner_flow, work = wide(inner_flow.contiguous(memory_format=planes)), wide(at_work_size(photo))
        small = moved(F.avg_pool2d(work, WORK // flow.shape[2]), flow)
        place = scaled(self.window, (WORK, WORK))
        through = crop(whole_flow(flow, inner_flow, (WORK, WORK), self.window), place)
        return Maps(flow, shared(paint, small), inner_flow, self.painter(x, moved(work, through, place)))


def convolutions_in(dtype: torch.dtype | None, z: torch.Tensor) -> torch.autocast:
    """Inside, networks with float32 weights convolve in this dtype, for inputs like ``z``; None: in that of ``z``."""
    low = dtype if z.dtype == torch.float32 else None
    place = "cpu" if z.is_meta else z.device.type  # PyTorch knows no autocast of what has shapes only
    return torch.autocast(place, low or torch.bfloat16, enabled=low not in (None, torch.float32))


def order_of(x: torch.Tensor) -> torch.memory_format:
    """Of the memory of maps [N, C, H, W]."""
    return torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format


def crop(x: torch.Tensor, window: tuple[int, ...]) -> torch.Tensor:
    top, left, rows, columns = window
    return x[..., top : top + rows, left : left + columns]


def blur(x: torch.Tensor) -> torch.Tensor:
    """The mean of :data:`BLUR` x :data:`BLUR` pixels around each of [N, C, H, W]; at the border of those that are
    there. That is a mean of means, as what is there is a rectangle, and each of them a matrix: ten times as fast as
    PyTorch's pooling of three channels on a CPU."""
    rows, columns = (_near(size, x) for size in x.shape[2:])
    return rows @ (x @ columns.T)


def _near(size: int, like: torch.Tensor) -> torch.Tensor:
    """[size, size]: in each row, the shares of those of ``size`` places that are near to one."""
    at = torch.arange(size, device=like.device)
    near = ((at[:, None] - at).abs() <= BLUR // 2).to(like.dtype)
    return near / near.sum(1, keepdim=True)


def at_work_size(photo: torch.Tensor) -> torch.Tensor:
    """[B, 3, H, W] -> [B, 3, 128, 128]."""
    return photo if photo.shape[2:] == (WORK, WORK) else resized(photo, WORK)


def resized(x: torch.Tensor, side: int) -> torch.Tensor:
    """[N, 3, H, W] -> [N, 3, side, side], without aliases. On a CPU PyTorch does not do this in half precision."""
    return F.interpolate(wide(x), (side, side), mode="bilinear", antialias=True).to(x.dtype)


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32 at least."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def build(config: MotionVAEConfig, grid: tuple[int, int] | None) -> tuple[nn.Module, Decoder]:
    if grid is not None and grid != (CELLS, CELLS):
        raise ArgumentError(f"vae: expected a picture of {CELLS} x {CELLS} cells of {config.patch_size}, got {grid}")
    return MotionEncoder(config), MotionDecoder(config)
