"""A session's place in an engine: its stream and the worker's end of its mailbox. All calls come from the worker."""

from __future__ import annotations

from collections.abc import Callable

from rest_fast.streaming.mailbox import Delivered, IdleRequest, Interrupt, Mailbox, Pushed, Retry, SegmentEnd
from rest_fast.streaming.snapshot import SessionState
from rest_fast.streaming.work import Work


class Seat:
    """Reads what has come, says whether there is a piece to compute and how urgent it is, and offers what was made.

    Args:
        place: the number of its places in the engine's step and cache.
        clock: seconds.
    """

    def __init__(self, place: int, work: Work, mailbox: Mailbox, clock: Callable[[], float]):
        self.place, self.work, self.stream, self.mailbox, self.clock = place, work, work.stream, mailbox, clock
        self.failed = False  # nothing is computed until the consumer knows
        self.since: float | None = None  # when something was to be done first

    def look(self) -> bool:
        """Read what came. Returns: whether there is a piece to compute."""
        mailbox, changed = self.mailbox, False
        while True:
            changed |= self.read()
            needed = not mailbox.closed and not self.failed and self.work.needs() is not None
            with mailbox.lock:
                if mailbox.closed:
                    return False
                if not mailbox.messages:
                    changed |= mailbox.quiet is needed  # that is, it changes
                    mailbox.quiet = not needed
                    if changed:
                        self._offer()
                    break
        if not needed:
            self.since = None
        elif self.since is None:
            self.since = self.clock()
        if changed:
            mailbox.wake()
        return needed

    def read(self) -> bool:
        """Pass all messages on to the stream, in order. Returns: whether there was any."""
        found = False
        while (message := self.mailbox.read()) is not None:
            found = True
            match message:
                case Pushed(samples):
                    self.stream.push(samples)
                case SegmentEnd():
                    self.stream.end_segment()
                case IdleRequest():
                    self.stream.request_idle()
                case Delivered():
                    self.stream.deliver()
                case Retry():
                    self.failed = False
                case Interrupt(shown):
                    self.stream.back_to(shown)
                    self.since = None  # what is wanted from now on is something else
        if found:
            self.stream.forget()
        return found

    @property
    def deadline(self) -> float:
        """When the viewer has played all that exists, or when the next chunk was wanted, if that is later."""
        exists = self.stream.timeline.waiting * self.mailbox.duration
        return max(self.mailbox.runs_out, self.since or 0.0) + exists

    def waited(self, now: float) -> float:
        """Seconds since something is to be done."""
        return 0.0 if self.since is None else now - self.since

    def done(self) -> None:
        """A chunk was decoded: offer its blocks, unless something came that may change them."""
        if self.since is not None:
            self.stream.watch.record("response", self.waited(self.clock()))
            self.since = None
        with self.mailbox.lock:
            offered = not self.mailbox.messages and not self.mailbox.closed
            if offered:
                self._offer()
        if offered:
            self.mailbox.wake()

    def fail(self, error: BaseException) -> None:
        """A piece has failed; nothing more is computed until the consumer was told."""
        self.work.abandon()
        self.failed = True
        with self.mailbox.lock:
            self.mailbox.error, self.mailbox.quiet = error, True
            self.mailbox.reading.clear()  # what was being read is read, or will not be
        self.mailbox.wake()

    def vacate(self) -> None:
        """Give back the memory of a session that was closed."""
        del self.work, self.stream

    def _offer(self) -> None:
        """Offer the blocks that are decoded; the lock is held, and all messages were read."""
        self.mailbox.offer(self.stream.made(), self.stream.queued)

    # -- as data

    def snapshot(self) -> SessionState:
        """Raises: SessionClosed."""
        while True:
            self.mailbox.require_open("snapshot")
            self.read()
            with self.mailbox.lock:
                if not self.mailbox.messages:  # nothing came meanwhile: epoch and stream belong together
                    self._offer()
                    state = self.stream.snapshot()
                    break
        self.mailbox.wake()
        return state

    def restore(self, state: SessionState) -> None:
        """Raises: SessionClosed; StateError, and then nothing has changed."""
        mailbox = self.mailbox
        with mailbox.lock:
            mailbox.require_open("restore")
            content = self.stream.read(state.fields(self.stream.identity()))
            # nothing above has changed the session, and nothing below can fail
            self.stream.put(content)
            self.work.forget()
            self.failed, self.since, mailbox.error, mailbox.quiet = False, None, None, False
            mailbox.epoch, mailbox.delivered = content.timeline.epoch, content.timeline.delivered
            mailbox.floor, mailbox.format = content.timeline.floor, content.timeline.sound.format
            mailbox.messages.clear()
            self._offer()
