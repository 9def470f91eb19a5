"""What ``causal_conv3d`` has to give, by other means: indices for padding, strided slices, F.rms_norm."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from tests.ops import calls

# what differs from a call with everything: name -> (sizes of the call, arguments left out)
FORMS: dict[str, tuple[dict, list[str]]] = {
    "everything": ({}, []),
    "first call": ({"first": True, "keep": 3}, []),
    "symmetric": ({"past": 1, "keep": 2}, []),
    "symmetric, first call": ({"past": 1, "keep": 0, "first": True}, []),
    "nothing kept": ({"keep": 0}, []),
    "mirrored": ({"reflect": True}, []),
    "mirrored, symmetric": ({"reflect": True, "past": 1, "size": (2, 3)}, []),
    "one frame": ({"frames": 1, "drop": 0}, []),
    "most frames dropped": ({"drop": 5}, []),
    "not rearranged": ({"factors": (1, 1, 1), "drop": 0, "tiles": 1}, []),
    "not rearranged, frames dropped": ({"factors": (1, 1, 1), "drop": 1, "tiles": 1}, []),
    "one batch": ({"batch": 1, "out": 12, "tiles": 3, "factors": (2, 2, 2)}, []),
    "wide": ({"channels": 40, "out": 36, "tiles": 2, "factors": (1, 2, 2), "size": (3, 19)}, []),
    "plain": ({"drop": 0}, ["bias", "noise", "noise_scale", "residual", "scale", "shift", "normed", "pictures"]),
    "normed alone": ({}, ["residual", "noise", "noise_scale", "out", "pictures"]),
    "norm without scale": ({"factors": (1, 1, 1), "out": 17}, ["residual", "scale", "shift", "out"]),
    "residual without noise": ({"factors": (1, 1, 1), "out": 17, "tiles": 1, "drop": 0}, ["noise", "noise_scale"]),
    "pictures alone": ({"factors": (1, 4, 4), "drop": 0}, ["residual", "noise", "noise_scale", "out", "normed"]),
}
RESULTS = ("out", "normed", "pictures")


def form(name: str, **options) -> calls.Call:
    sizes, absent = FORMS[name]
    return calls.causal_conv3d(**sizes, **options) | {n: None for n in absent}


def piece(call: calls.Call) -> torch.Tensor:
    """The frames of the buffer that are new: [B, C, T, H, W]."""
    past, frames = call["history"].shape[2], call["buffer"].shape[2] - 2
    return call["buffer"][:, :, past : past + frames]


def widened(call: calls.Call) -> calls.Call:
    """The same numbers in float64; results are left to be written."""
    floats = [n for n, v in call.items() if isinstance(v, torch.Tensor) and v.is_floating_point()]
    wide = call | {n: call[n].double() for n in floats}
    return wide | {n: call[n].clone() for n in ("pictures",) if call[n] is not None}


def rearranged(x: torch.Tensor, factors: list[int], drop: int) -> torch.Tensor:
    (p1, p2, p3), (b, c, t, h, w) = factors, x.shape
    out = x.new_full((b, c // (p1 * p2 * p3), t * p1, h * p2, w * p3), torch.nan)
    for i in range(p1):
        for j in range(p2):
            for k in range(p3):
                out[:, :, i::p1, j::p2, k::p3] = x[:, (i * p2 + j) * p3 + k :: p1 * p2 * p3]
    return out[:, :, drop:]


def expected(call: calls.Call) -> dict[str, torch.Tensor]:
    """out, normed, pictures (before rounding) and history of a call, in float64."""
    wide = widened(call)
    x, past = piece(wide), call["history"].shape[2]
    before = [x[:, :, 0]] * past if call["first"] else list(wide["history"].unbind(2))
    frames = [*before, *x.unbind(2), *[x[:, :, -1]] * (2 - past)]
    seen = torch.stack(frames, 2)
    history = seen[:, :, call["keep"] : call["keep"] + past]
    rows, columns = ([1, *range(n), n - 2] for n in x.shape[3:])
    around = seen[..., rows, :][..., columns] if call["reflect"] else F.pad(seen, (1, 1, 1, 1))
    y = F.conv3d(around, wide["weight"], wide["bias"])
    if call["noise"] is not None:
        y = y + torch.einsum("o,bhw->bohw", wide["noise_scale"], wide["noise"])[:, :, None]
    y = rearranged(y, call["factors"], call["drop"])
    if call["residual"] is not None:
        added = rearranged(wide["residual"], call["factors"], call["drop"])
        y = y + torch.cat([added] * (y.shape[1] // added.shape[1]), 1)
    weight = None if call["scale"] is None else 1 + wide["scale"]
    normed = F.rms_norm(y.movedim(1, -1), y.shape[1:2], weight, call["eps"])
    if call["shift"] is not None:
        normed = normed + wide["shift"]
    pictures = (127.5 * y + 127.5).clamp(0, 255).movedim(1, -1)
    return {"out": y, "normed": F.silu(normed).movedim(-1, 1), "pictures": pictures, "history": history}
