"""Blocks for a viewer who watches all the time: each comes before the one before it has been played.

What is missing at that time decides what comes instead. Where sound is missing, a chunk of silence is asked for, and
its blocks are handed out one by one, at the last moment, so that speech can take the place of those not seen yet. Where
computation is late, the last frame comes again, as often as needed: nothing of the stream is skipped.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from rest_fast.streaming.block import Block
from rest_fast.streaming.mailbox import Mailbox
from rest_fast.units import FPS

IDLE_BEFORE = 0.04  # seconds before its time at which a block of silence is handed out
ASK_BEFORE = 0.32  # seconds before its time at which silence is asked for; a chunk of it has to be computed
HELD = 1 / FPS  # seconds of a frame that comes again


async def live_blocks(
    mailbox: Mailbox,
    changed: asyncio.Event,
    ahead: float,
    take: Callable[[], Block | None],
    hold: Callable[[], Block | None],
    arrival: Callable[[], Awaitable[None]],
    kick: Callable[[], None],
) -> AsyncIterator[Block]:
    """The blocks of a session until it is closed.

    Args:
        changed: is set when something in the mailbox has changed.
        ahead: seconds before its time at which a block of speech may be handed out; as much as can be taken back.
        take, hold: the next block, or the last frame again; None where there is none, and failures are raised.
        arrival: waits for pictures that are on their way.
        kick: has the worker go on.
    """
    while not mailbox.closed:
        changed.clear()
        await arrival()
        until, made = mailbox.plays_until or mailbox.clock(), mailbox.peek()
        if made is not None or mailbox.failure_is_next:
            early = IDLE_BEFORE if made is not None and made.idle else ahead
            wait: float | None = until - early - mailbox.clock()
            if made is None or until - early <= mailbox.clock():
                block = take()
                if block is not None:
                    yield block
                continue
        elif mailbox.settled:
            wait = until - ASK_BEFORE - mailbox.clock()
            if until - ASK_BEFORE <= mailbox.clock():
                mailbox.ask_for_idle()
                kick()
                continue
        else:
            kick()
            wait = until - mailbox.clock()
            if until <= mailbox.clock():
                held = hold()
                if held is not None:
                    yield held
                    continue
                wait = None  # nothing was shown yet
        # Not asyncio.wait_for: before Python 3.12 it loses a cancellation that comes together with the change.
        timer = None if wait is None else asyncio.get_running_loop().call_later(wait, changed.set)
        try:
            await changed.wait()
        finally:
            if timer is not None:
                timer.cancel()
