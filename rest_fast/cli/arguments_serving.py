"""The words of ``rest-fast serve``."""

from __future__ import annotations

from collections.abc import Callable

from rest_fast.cli.parser import Parser, add_behaviour, add_weights, existing, positive, whole


def add_serve(add: Callable[..., Parser]) -> None:
    parser = add(
        "serve",
        "serve talking faces to front ends, and a page to try them on",
        "[options]",
        """  rest-fast serve                                         then open http://127.0.0.1:8766/
  rest-fast serve --portrait anna.jpg --sessions 4
  REST_FAST_TOKEN=... rest-fast serve --host 0.0.0.0 --allow-origin https://example.org""",
    )
    where = parser.add_argument_group("address")
    where.add_argument("--host", default="127.0.0.1", metavar="ADDRESS", help="others than this machine need a token")
    where.add_argument("--port", type=whole(1, 65535), default=8766, metavar="N")
    where.add_argument("--token", metavar="TEXT", help="that clients must give; default: the variable REST_FAST_TOKEN")
    where.add_argument(
        "--allow-origin",
        action="append",
        default=[],
        metavar="URL",
        help="a page of another server that may connect, as https://example.org; may be repeated",
    )
    where.add_argument("--no-page", action="store_true", help="no live page, for front ends alone")
    what = parser.add_argument_group("sessions")
    what.add_argument(
        "--portrait",
        type=existing(),
        action="append",
        default=[],
        metavar="PHOTO",
        help="a face to offer beside the shipped ones, under its file's name; may be repeated",
    )
    what.add_argument(
        "--sessions", type=whole(1, 256), default=8, metavar="N", help="that memory is taken for; fewer are let in "
        "where a chunk takes too long",
    )  # fmt: skip
    what.add_argument("--longest", type=positive, default=3600.0, metavar="S", help="seconds of a session at most")
    what.add_argument("--backlog", type=positive, default=120.0, metavar="S", help="seconds of sound that may wait")
    what.add_argument("--label", metavar="TEXT", help="a line of text in the corner of every frame")
    model = add_weights(parser, guidance=False)
    model.add_argument("--threads", type=whole(1, 1024), metavar="N", help="threads on the CPU, as in render")
    add_behaviour(parser)
