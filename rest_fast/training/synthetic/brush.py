"""Small helpers around skia: colours, paints, paths and soft blobs. skia itself is loaded on first use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

Colour = tuple[float, float, float]  # red, green, blue in 0..255


def load_skia() -> Any:
    """The module `skia`, or an error that says how to get it."""
    try:
        import skia
    except ImportError as error:
        raise ImportError("drawing portraits needs: pip install 'rest_fast[synth]'") from error
    return skia


def mix(a: Colour, b: Colour, t: float) -> Colour:
    """From `a` (t = 0) to `b` (t = 1)."""
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def tint(a: Colour, by: float | Colour) -> Colour:
    """`a` times a number or times one number per channel, clipped to white."""
    r, g, b = by if isinstance(by, tuple) else (by, by, by)
    return (min(a[0] * r, 255.0), min(a[1] * g, 255.0), min(a[2] * b, 255.0))


def grade(palette: Sequence[Colour], at: float) -> Colour:
    """The colour at 0..1 along a palette whose neighbours mix well."""
    place = min(max(at, 0.0), 1.0) * (len(palette) - 1)
    i = min(int(place), len(palette) - 2)
    return mix(palette[i], palette[i + 1], place - i)


def argb(rgb: Colour, alpha: float = 1.0) -> int:
    r, g, b = (int(c + 0.5) for c in rgb)
    return int(alpha * 255 + 0.5) << 24 | r << 16 | g << 8 | b


def fill(rgb: Colour = (0, 0, 0), alpha: float = 1.0, blur: float = 0.0, shader: Any = None) -> Any:
    """An antialiased paint; `blur` is the sigma of soft edges, in the units drawn in."""
    skia = load_skia()
    paint = skia.Paint(AntiAlias=True, Color=argb(rgb, alpha))
    if blur:
        paint.setMaskFilter(skia.MaskFilter.MakeBlur(skia.kNormal_BlurStyle, blur))
    if shader is not None:
        paint.setShader(shader)
    return paint


def stroke(rgb: Colour, width: float, alpha: float = 1.0, blur: float = 0.0) -> Any:
    """Like `fill`, for lines with round ends."""
    skia = load_skia()
    paint = fill(rgb, alpha, blur)
    paint.setStyle(skia.Paint.kStroke_Style)
    paint.setStrokeWidth(width)
    paint.setStrokeCap(skia.Paint.kRound_Cap)
    paint.setStrokeJoin(skia.Paint.kRound_Join)
    return paint


Stop = tuple[float, Colour, float]  # position 0..1, colour, opacity


def radial(x: float, y: float, radius: float, *stops: Stop) -> Any:
    colours = [argb(rgb, alpha) for _, rgb, alpha in stops]
    return load_skia().GradientShader.MakeRadial((x, y), radius, colours, [at for at, _, _ in stops])


def linear(start: tuple[float, float], end: tuple[float, float], *stops: Stop) -> Any:
    colours = [argb(rgb, alpha) for _, rgb, alpha in stops]
    return load_skia().GradientShader.MakeLinear([start, end], colours, [at for at, _, _ in stops])


def path(*pieces: tuple[float, ...], close: bool = True) -> Any:
    """Start point, then lines (2 numbers), quadratic (4) and cubic (6) curves, all absolute."""
    out = load_skia().Path()
    out.moveTo(*pieces[0])
    for piece in pieces[1:]:
        if len(piece) == 6:
            out.cubicTo(*piece)
        elif len(piece) == 4:
            out.quadTo(*piece)
        else:
            out.lineTo(*piece)
    if close:
        out.close()
    return out


def glow(rgb: Colour, alpha: float) -> Any:
    """The paint of a `blob`: a disc of radius 1 that fades smoothly, much cheaper than a blur."""
    fade = ((0.0, 1.0), (0.25, 0.86), (0.5, 0.5), (0.75, 0.14), (1.0, 0.0))
    return fill(shader=radial(0, 0, 1, *((at, rgb, alpha * part) for at, part in fade)))


def blob(canvas: Any, x: float, y: float, rx: float, ry: float, paint: Any) -> None:
    """A soft ellipse with half axes rx, ry where it has faded to nothing; `paint` is a `glow`."""
    canvas.save()
    canvas.translate(x, y)
    canvas.scale(rx, ry)
    canvas.drawCircle(0, 0, 1, paint)
    canvas.restore()


def record(paint: Callable[[Any], None]) -> Any:
    """What `paint(canvas)` draws, as a picture that one call replays: for all that never changes."""
    skia = load_skia()
    recorder = skia.PictureRecorder()
    paint(recorder.beginRecording(skia.Rect.MakeLTRB(-300, -300, 300, 300)))
    return recorder.finishRecordingAsPicture()
