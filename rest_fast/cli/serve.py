"""``rest-fast serve``: sessions for front ends, and a page to try them on."""

from __future__ import annotations

import ipaddress
import os
import sys
from argparse import Namespace

from rest_fast.cli.models import check_model, load_model
from rest_fast.cli.terminal import InputError, say

TOKEN = "REST_FAST_TOKEN"


def serve(args: Namespace) -> None:
    token = args.token or os.environ.get(TOKEN) or None
    if token is None and not _is_loopback(args.host):
        raise InputError(
            f"--host {args.host}: expected --token, or the variable {TOKEN}, for an address that others reach, got none"
        )
    check_model(args)

    from rest_fast.serving.limits import Limits
    from rest_fast.serving.run import open_service, run

    limits = Limits(session=args.longest, backlog=args.backlog)
    model = load_model(args)
    say(f"{args.weights} is loaded; the first chunks are being made ...", sys.stderr)
    service = open_service(model, sessions=args.sessions, portraits=args.portrait, limits=limits, label=args.label)
    service.access = service.access.of(token, args.allow_origin)
    capacity = service.engine.capacity()
    say(f"{capacity} sessions fit. http://{_shown(args.host)}:{args.port}/ (Ctrl-C ends it)", sys.stderr)
    args.left = "the server has ended"  # what a signal leaves
    run(service, host=args.host, port=args.port, page=not args.no_page)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _shown(host: str) -> str:
    return f"[{host}]" if ":" in host else host
