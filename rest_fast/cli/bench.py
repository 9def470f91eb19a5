"""``rest-fast bench``: how long viewers wait on this machine."""

from __future__ import annotations

import sys
from argparse import Namespace
from pathlib import Path

from rest_fast.cli.models import check_model, load_model
from rest_fast.cli.outputs import writable
from rest_fast.cli.terminal import InputError, Progress, say

QUICK, REALTIME = (1,), (1, 2, 4)  # sessions
LEAST = 2.0  # seconds of viewers in real time


def bench(args: Namespace) -> None:
    if args.compare:
        _compare(args)
        return
    if args.plot is not None and not args.realtime:
        raise InputError("--plot: expected --realtime beside it, whose viewers are what it shows")
    if args.realtime and args.seconds < LEAST:
        raise InputError(
            f"--seconds: expected at least {LEAST:g}, in which a first block can come, got {args.seconds:g}"
        )
    json_to, plot_to = _output(args.json, ".json"), _output(args.plot, ".png")
    check_model(args)

    from rest_fast.files import DEMO
    from rest_fast.latency import report, suite
    from rest_fast.latency.measures import Options

    model = load_model(args)
    avatar = model.prepare(DEMO / "portrait.png", crop="center")
    options = Options(lanes=args.lanes, seconds=args.seconds)
    chosen = tuple(dict.fromkeys(args.sessions or (REALTIME if args.realtime else QUICK)))
    steps = (suite.realtime if args.realtime else suite.quick)(chosen, args.peers)
    with Progress("measures", quiet=args.quiet) as progress:
        found = report.document(model, options, suite.run(steps, model, avatar, options, progress))
    if json_to is not None:
        report.write(found, json_to)
        args.left = f"{args.json} is complete"
    if plot_to is not None:
        report.plot(found, plot_to)
    say(report.text(found), sys.stdout)


def _compare(args: Namespace) -> None:
    if args.realtime or args.peers or args.json or args.plot:
        raise InputError("--compare: expected two files and no measure or output beside it")

    from rest_fast.latency import report

    a, b = (report.read(path) for path in args.compare)
    say(report.comparison(a, b), sys.stdout)


def _output(name: str | None, ending: str) -> Path | None:
    if name is None:
        return None
    if Path(name).suffix.lower() != ending:
        raise InputError(f"output {name}: expected a file name that ends in {ending}")
    return writable(name)
