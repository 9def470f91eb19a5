"""``rest-fast serve``: sessions for front ends, and a page to try them on."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import sys
from argparse import Namespace
from typing import TYPE_CHECKING

from rest_fast.cli.models import check_model, load_model
from rest_fast.cli.terminal import InputError, say

if TYPE_CHECKING:  # --help does not wait for PyTorch
    from rest_fast.streaming.engine import Engine

TOKEN = "REST_FAST_TOKEN"


def serve(args: Namespace) -> None:
    token = args.token or os.environ.get(TOKEN) or None
    if token is None and not _is_loopback(args.host):
        raise InputError(
            f"--host {args.host}: expected --token, or the variable {TOKEN}, for an address that others reach, got none"
        )
    asyncio.run(_refuse_taken(args.host, args.port))
    check_model(args)

    from rest_fast.serving.limits import Limits
    from rest_fast.serving.run import open_service, run

    limits = Limits(session=args.longest, backlog=args.backlog)
    model = load_model(args)
    say(f"{args.weights} is loaded; the first chunks are being made ...", sys.stderr)
    service = open_service(model, sessions=args.sessions, portraits=args.portrait, limits=limits, label=args.label)
    service.access = service.access.of(token, args.allow_origin)
    say(f"{fitting(service.engine)}. http://{_shown(args.host)}:{args.port}/ (Ctrl-C ends it)", sys.stderr)
    args.left = "the server has ended"  # what a signal leaves
    run(service, host=args.host, port=args.port, page=not args.no_page)


def fitting(engine: Engine) -> str:
    """How many sessions are let in; why, where none is."""
    from rest_fast.streaming.costs import LOAD

    capacity = engine.capacity()
    if capacity:
        return f"{capacity} sessions fit" if capacity > 1 else "1 session fits"
    each, most = 1e3 * engine.costs.chunk, 1e3 * LOAD * engine.costs.duration
    return f"no session fits while a chunk takes {each:.0f} ms to make, at most {most:.0f} is fast enough"


async def _refuse_taken(host: str, port: int) -> None:
    """Listen for a moment, as the server will: who has to choose another port need not wait for the model."""
    try:
        (await asyncio.get_running_loop().create_server(asyncio.Protocol, host, port)).close()
    except OSError as e:
        reason = str(e.strerror).rpartition(": ")[2]  # asyncio's have the address before it
        expected = "expected an address of this machine and a port that is free"
        raise InputError(f"--host {host} --port {port}: {expected}, got: {reason}") from None


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
