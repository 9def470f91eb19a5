"""The end of work that runs beside other work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


async def end_all(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel them, and wait until they have ended, whatever they raise.

    More than once where that is needed: before Python 3.12, ``asyncio.wait_for`` loses a cancellation that comes
    together with what it waits for, and the task would go on as if nothing had been.
    """
    tasks = list(tasks)
    while left := [task for task in tasks if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=0.1)
    await asyncio.gather(*tasks, return_exceptions=True)
