"""What a model can do, in numbers: its VAE, its lips, its streams. Writes JSON, a table and plots.

Three videos of every clip stand beside the truth: the truth through the VAE, the generated one, and one generated with
another clip's sound, which a true measure of lip sync must call wrong. What cannot be measured with what is there is
named in the table, with what it would need.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rest_fast.config import TEMPORAL
from rest_fast.evaluation import batched, charts, measures, tables
from rest_fast.evaluation.batched import EACH, StreamMeasures, StreamRecord
from rest_fast.evaluation.clips import VIDEOS, ClipStudy, by_phase, clip_name
from rest_fast.evaluation.instruments import Given, Instruments
from rest_fast.evaluation.sources import EvaluationError, Examples
from rest_fast.evaluation.streams import Talk
from rest_fast.model import Model
from rest_fast.models.rest import REST
from rest_fast.units import FPS


def evaluate(
    model: Model,
    data: Path,
    out: Path,
    *,
    clips: int = 24,
    seconds: int = 60,
    streams: int = 4,
    split: str | None = None,
    reader: Path | None = None,
    landmarks: Path | None = None,
    landmark_command: str | None = None,
    embedder: Path | None = None,
    inception: Path | None = None,
    i3d: Path | None = None,
    syncnet: Path | None = None,
    guidance: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure what can be measured; write ``OUT/evaluation.json``, ``evaluation.md`` and plots. The result is the JSON.

    Args:
        data: folder of ``rest-fast synth``, or of prepared clips with video and samples.
        clips: so many of the first ones, at least 2; all where there are fewer.
        seconds: of each of the long ``streams``, at least 20; no streams where that is 0.
        split: of prepared clips; test, else validation when None.
        reader: of drawn mouths, a fitted one, or a folder of other drawn clips to fit one on (then written to
            OUT, and the mouth is read off the latents, too); when None the one beside ``data``, if there is one.
        landmarks: folder of landmark files of the videos in ``OUT/videos``; ``landmark_command`` makes them
            (:mod:`rest_fast.evaluation.mouths`). Either comes before ``reader``.
        embedder: network of faces, and ``inception``, ``i3d`` (:mod:`rest_fast.evaluation.distances`), ``syncnet``
            (:mod:`rest_fast.evaluation.syncnet`): files of the user.
        guidance: the model's own when None.
        progress: called with steps done and steps in all.
    Raises: :class:`EvaluationError`, before any work; ImportError: names the extra.
    """
    measures.ssim_library()
    examples = Examples(data, split)
    count = min(clips, len(examples))
    _check(model, examples, data, count, seconds, streams)
    names = [clip_name(n, video) for n in range(count) for video in VIDEOS]
    given = Given(reader, landmarks, landmark_command, embedder, inception, i3d, syncnet)
    tools = Instruments.open(given, model, examples, data, out, names)
    talks = examples.talks(streams, seconds) if streams else []
    out.mkdir(parents=True, exist_ok=True)
    chunks = math.ceil(seconds * FPS / (TEMPORAL * model.config.stream.chunk)) if streams else 0

    def tell(done: int) -> None:
        if progress is not None:
            progress(done, count + chunks)

    filmed = None if examples.drawn else out / "videos"
    study = ClipStudy(model, examples, tools, videos=filmed, guidance=guidance)
    for n in range(count):
        study.add(n, (n + 1) % count)
        tell(n + 1)
    result = _about(model, examples, data, count, guidance) | study.result()
    curves = study.curves()
    if streams:
        long, more = _streams(model, talks, tools, seconds, guidance, lambda done, _: tell(count + done))
        result["streams"], curves = long, curves | more
    meters = {"fid": tools.fid, "fvd": tools.fvd}
    result["distances"] = {name: meter.value() for name, meter in meters.items() if meter is not None}
    result |= {"not_measured": tools.missing | study.missing, "curves": curves}
    plain: dict[str, Any] = jsonable(result)
    charts.draw(plain["curves"], out, model.config.stream.chunk)
    (out / "evaluation.md").write_text(tables.markdown(plain), encoding="utf-8")
    (out / "evaluation.json").write_text(json.dumps(plain, indent=1, allow_nan=False) + "\n")
    return plain


def _check(model: Model, examples: Examples, data: Path, clips: int, seconds: int, streams: int) -> None:
    if not isinstance(model, REST):
        raise EvaluationError(
            f"evaluate: expected a model of REST for clips, got {model.config.name} (--photos measures any)"
        )
    if clips < 2:
        raise EvaluationError(f"evaluate: clips: expected at least 2 of the {len(examples)} in {data}, got {clips}")
    least = 2 * batched.EDGE
    if streams < 0 or (streams and seconds < least):
        raise EvaluationError(
            f"evaluate: streams: expected 0, or some of at least {least} s, got {streams} of {seconds} s"
        )
    want = (model.config.height, model.config.width)
    if tuple(examples.size) != want:
        raise EvaluationError(f"{data}: expected clips of the model's {want[0]} x {want[1]}, got {examples.size}")


def _about(model: Model, examples: Examples, data: Path, count: int, guidance: float | None) -> dict[str, Any]:
    sampling = dataclasses.asdict(model.config.sampling) | ({} if guidance is None else {"guidance": guidance})
    return {
        "model": {"name": model.config.name, "fingerprint": model.fingerprint, "sampling": sampling},
        "data": {"folder": data.name, "split": examples.split, "drawn": examples.drawn, "clips": count},
    }


def _streams(
    model: Model,
    talks: list[Talk],
    tools: Instruments,
    seconds: int,
    guidance: float | None,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Measures of the long streams, mean and deviation over them; and their curves."""
    chunk, seeds = model.config.stream.chunk, range(len(talks))
    records = batched.record_streams(model, talks, tools.reader, seeds=seeds, guidance=guidance, progress=progress)
    found = [dataclasses.asdict(StreamMeasures.of(r, talk, chunk)) for r, talk in zip(records, talks)]
    long: dict[str, Any] = {"count": len(talks), "seconds": seconds}
    long |= {name: measures.summary([each[name] for each in found]) for name in found[0]}
    drifts: dict[str, list[Any]] = {"colour": [], "structure": []}
    for record, talk in zip(records, talks):
        drifts["colour"].append(batched.colour_per_second(record.colour, talk.photo))
        drifts["structure"].append(_each_second(record))
        if tools.embedder is not None:
            similarity = tools.embedder.similarity(record.seconds, talk.photo)
            drifts.setdefault("embedding", []).append(1 - similarity)
    if tools.embedder is not None:
        edges = [(d[: batched.EDGE].mean(), d[-batched.EDGE :].mean()) for d in drifts["embedding"]]
        for name, values in zip(("first", "last"), zip(*edges)):
            long[f"embedding_distance_{name}"] = measures.summary(list(values))
    bends = [by_phase(measures.border_bends(r.head[:, 0]), TEMPORAL * chunk) for r in records]
    return long, {"drift": drifts, "bend": {"generated": np.mean(bends, 0)}}


def _each_second(record: StreamRecord) -> Any:
    """Mean structural drift of each whole second."""
    each = FPS // EACH
    return record.drift[: len(record.drift) // each * each].reshape(-1, each).mean(1)


def jsonable(value: Any) -> Any:
    """What JSON can hold: lists for arrays, null for NaN."""
    if isinstance(value, dict):
        return {str(k): jsonable(v) for k, v in value.items()}
    if isinstance(value, list | tuple | np.ndarray):
        return [jsonable(v) for v in value]
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
