"""Many sessions on one step: whose piece of computation comes next, and how many sessions there may be.

The work of all sessions is done in pieces (:mod:`rest_fast.streaming.work`), one after another, in the model's worker.
The next piece is that of the session whose viewer runs out of video first. So a session that is new or was interrupted
waits for a piece, not for a chunk, and a viewer who is far ahead waits for all others. What a session shows does not
depend on any of this: its evaluations are its own, or lanes of a fixed number, and it has its own places in the step.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from rest_fast import noise
from rest_fast.avatar import Avatar
from rest_fast.errors import ArgumentError, AvatarError, CapacityExhausted, EngineClosed
from rest_fast.models.network import Network
from rest_fast.streaming.costs import LOAD, Costs
from rest_fast.streaming.family import Places, family_of
from rest_fast.streaming.mailbox import Mailbox
from rest_fast.streaming.metrics import Percentiles
from rest_fast.streaming.pump import Pump
from rest_fast.streaming.sampler import branches
from rest_fast.streaming.seat import Seat
from rest_fast.streaming.session import Session, opened
from rest_fast.streaming.viewing import Viewing
from rest_fast.streaming.work import Piece, Sampler, Work

T = TypeVar("T")

STALE = 10.0  # seconds after which the time of a chunk is measured again before somebody is refused
TRIAL = 2.0  # seconds after which no further trial chunk is begun, if two were timed
WARM_UP, TIMED = 2, 5  # trial chunks: those that are not timed, where none was made before, and those that are
QUEUED = 2  # pieces that are queued on a GPU: one computes, and one waits so that there is no gap


@dataclass(frozen=True)
class EngineMetrics:
    """Of an engine since it was opened."""

    sessions: int  #: open now
    capacity: int  #: how many there may be; see :meth:`Engine.capacity`
    places: int  #: how many there is memory for
    opened: int
    refused: int  #: sessions that were refused
    chunks: int  #: made for all sessions
    chunk_ms: float  #: what a chunk costs, mean over the latest ones; not what it waits
    busy: float  #: share of the time since the engine was opened in which it computed
    pieces: Percentiles | None  #: of computation: what an urgent session may have to wait for


class Engine:
    """Serves several viewers; open with :meth:`rest_fast.Model.engine`. A context manager, ``async with`` included.
    Safe to use from several threads.

    Args:
        lanes: of one evaluation: a session with guidance takes two. On a CPU an evaluation is always one session's.
        sessions: how many may be open at once; memory is taken for all of them.
        sampling: of the model's family.
        graphs: whether denoising and decoding are CUDA graphs: ``on``, ``off``, or ``auto``, on where there is CUDA.
        admission: refuse sessions that would be too many for the measured time of a chunk, which is done first.
        backlog: seconds of sound that a session may queue; None: any.
        fewer_steps: sampling steps of chunks that come too late otherwise; None: all chunks have the same.
        clock: seconds, for deadlines.
        eager: generate when sound comes, a chunk ahead of what was taken; otherwise when a block is asked for.
    Raises: :class:`rest_fast.ArgumentError`.
    """

    session_type: type[Session] = Session

    def __init__(
        self,
        model: Network,
        sampling: Any,
        *,
        lanes: int = 2,
        sessions: int = 8,
        graphs: str = "auto",
        admission: bool = True,
        backlog: float | None = 300.0,
        fewer_steps: int | None = None,
        clock: Callable[[], float] = time.monotonic,
        eager: bool = True,
    ):
        _check(sampling, lanes, sessions, backlog, fewer_steps)
        self.model, self.sampling, self.lanes, self.places = model, sampling, lanes, sessions
        self.admission, self.backlog, self.clock, self.eager = admission, backlog, clock, eager
        places = Places(sessions, lanes, graphs, fewer_steps, planned=eager)
        self.family = family_of(model, sampling, places)
        self.together = self.family.together  # sessions in an evaluation
        self.closed = False
        self.seats: list[Seat] = []  # of the sessions that are open
        self.free = list(range(sessions))  # places
        self.costs = Costs(model.config.stream.chunk * model.config.latent_seconds)
        self.alone = threading.RLock()  # held by whoever computes; there is one worker, but for the end of a process
        # Whoever wakes it, an eager engine computes under the settings under which it was opened.
        self.pump = Pump(model, self._piece, contextvars.copy_context() if eager else None)
        self._executor: Executor | None = None
        self._running: deque[torch.cuda.Event] = deque()  # pieces on a GPU
        self._measured_at = clock()
        self._opened_at, self._opened, self._refused = clock(), 0, 0
        if admission:
            self.measure()

    @classmethod
    def for_one(
        cls,
        model: Network,
        avatar: Avatar,
        sampling: Any,
        *,
        graphs: str = "auto",
        on_step: Callable[[int, int], None] | None = None,
        **options: Any,
    ) -> Session:
        """A session with an engine of its own, which computes when a block is asked for and ends with it."""
        _check_viewer(model, avatar, options["seed"])
        lanes = branches(sampling)
        engine = cls(
            model, sampling, lanes=lanes, sessions=1, graphs=graphs, admission=False, backlog=None, eager=False
        )
        session = engine.open(avatar, **options)
        if on_step is not None:
            session.seat.work.by_step(on_step)
        return session

    # -- sessions

    def session(self, avatar: Avatar, *, sample_rate: int = 16000, seed: int = 0, decode: str | None = None) -> Session:
        """Open a stream for one viewer.

        Args:
            sample_rate: rate of the pushed sound, an integer in 8000..96000 Hz.
            seed: of the noise; 0..2^64 - 1.
            decode: how the VAE sees time, ``causal`` or ``lookahead(L)``; None for what fits the checkpoint.
        Raises: :class:`rest_fast.CapacityExhausted` for one session too many; :class:`rest_fast.AvatarError`;
            :class:`rest_fast.ArgumentError`; :class:`rest_fast.EngineClosed`; where a capture fails
            :class:`rest_fast.CaptureError`, with the reason.
        """
        return self.model.compute(self.open, avatar, sample_rate=sample_rate, seed=seed, decode=decode)

    async def asession(
        self, avatar: Avatar, *, sample_rate: int = 16000, seed: int = 0, decode: str | None = None
    ) -> Session:
        """:meth:`session` for an event loop, which goes on while the session is opened: that takes tenths of a second.

        Where the wait is cancelled, the session is closed as soon as it is open.
        """
        options = {"sample_rate": sample_rate, "seed": seed, "decode": decode}
        return await opened(self.model.submit(self.open, avatar, **options))

    def open(self, avatar: Avatar, *, sample_rate: int, seed: int, decode: str | None) -> Session:
        """What :meth:`session` does, in the worker."""
        with self.alone:
            if self.closed:
                raise EngineClosed("session: expected an open engine, got a closed one")
            _check_viewer(self.model, avatar, seed)
            self._require_place()
            stream = self.family.stream(avatar, self.free[0], rate=sample_rate, seed=seed, decode=decode)
            mailbox = Mailbox(self.clock, stream.lead, self.model.config.latent_seconds)
            seat = Seat(self.free[0], self._work(stream), mailbox, self.clock)
            session = self.session_type(self, seat, self.backlog)
            self.free.pop(0)  # from here on, nothing fails
            self.seats.append(seat)
            self._opened += 1
        if self.closed:  # meanwhile, by a thread that did not see this session
            session.close()
            raise EngineClosed("session: expected an open engine, got one that was closed meanwhile")
        return session

    @property
    def sampler(self) -> Sampler:
        """That of all its sessions."""
        return self.family.sampler

    def _work(self, stream: Viewing) -> Work:
        return Work(stream, whole=self.places == 1, early=self.eager, fewer=self.family.fewer)

    def _require_place(self) -> None:
        full = self.admission and len(self.seats) >= self.capacity()
        if full and self.free and (not self.seats or self.clock() - self._measured_at > STALE):
            # nobody makes chunks that would show whether they take less time now
            self.measure(TRIAL if not self.seats else TRIAL / 8)
        capacity, count = self.capacity(), len(self.seats)
        if self.free and (count < capacity or not self.admission):
            return
        self._refused += 1
        if not self.free:
            raise CapacityExhausted(f"engine: expected at most {self.places} sessions, its places, got one more")
        each, chunk = 1e3 * self.costs.chunk, 1e3 * self.costs.duration
        raise CapacityExhausted(
            f"engine: expected at most {capacity} sessions, since a chunk of {chunk:.0f} ms takes {each:.0f} ms to "
            f"make and {LOAD:.0%} of the time may be used, got one more. It is measured again and again, so there may "
            "be room later (admission=False takes one more all the same)"
        )

    def leave(self, seat: Seat) -> None:
        """Free a closed session's place and memory, behind the piece that is being computed."""
        self.model.submit(self._leave, seat)

    def _leave(self, seat: Seat) -> None:
        with self.alone:
            if seat in self.seats:
                self.seats.remove(seat)
                self.costs.forget(seat)
                self.free.append(seat.place)
                seat.vacate()
            if not self.eager:
                self._vacate()

    def close(self) -> None:
        """Close all sessions, and give back the memory."""
        if self.closed:
            return
        self.closed = True
        for seat in list(self.seats):
            if seat.mailbox.close():
                self.leave(seat)
        self.model.submit(self._vacate)
        if self._executor is not None:
            self._executor.shutdown(wait=False)

    def _vacate(self) -> None:
        self.closed = True
        self.family.vacate()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def __aenter__(self) -> Engine:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    # -- how many

    def capacity(self) -> int:
        """How many sessions can be served: as many as there are places, and as LOAD of the time suffices for.

        It is measured, so it falls where other programs take the processor. Sessions that are open stay.
        """
        return self.costs.capacity(self.places)

    def metrics(self) -> EngineMetrics:
        """Counts and times since the engine was opened."""
        return EngineMetrics(
            sessions=len(self.seats),
            capacity=self.capacity(),
            places=self.places,
            opened=self._opened,
            refused=self._refused,
            chunks=self.costs.made,
            chunk_ms=1e3 * self.costs.chunk,
            busy=self.costs.busy / max(self.clock() - self._opened_at, 1e-9),
            pieces=self.costs.pieces(),
        )

    @torch.inference_mode()
    def measure(self, seconds: float = TRIAL) -> None:
        """Make chunks of silence for nobody, to see what one costs now: two that warm up, if none was made before, and
        up to five whose times replace all those before; fewer where they take more than so many seconds."""
        work = self._work(self.family.stream(self.family.nobody(), self.free[0]))
        warm_up = 0 if self.costs.chunks else WARM_UP
        start, times = self.clock(), []
        for i in range(warm_up + TIMED):
            before = self.clock()
            work.stream.request_idle()
            while (piece := work.needs()) is not None:
                _compute(work, piece)
            while work.stream.has_block():
                work.stream.make_block()
                work.stream.deliver()
            work.stream.forget()
            if i >= warm_up:
                times.append(self.clock() - before)
                if len(times) > 1 and self.clock() - start > seconds:
                    break
        self.costs.replace(times)
        self._measured_at = self.clock()

    # -- pieces

    @property
    def executor(self) -> Executor:
        """Threads that wait for a GPU in the place of an event loop."""
        if self._executor is None:
            self._executor = ThreadPoolExecutor(4, "rest_fast-wait")
        return self._executor

    def compute(self, job: Callable[..., T], *args: Any) -> T:
        """A job between two pieces."""

        def between() -> T:
            with self.alone:
                return job(*args)

        return self.model.compute(between)

    def kick(self) -> None:
        """Something has come for a session."""
        self.pump.kick()

    @torch.inference_mode()
    def _piece(self) -> bool:
        """Compute the most urgent piece; False where there is none."""
        with self.alone:
            try:
                return self._most_urgent()
            except BaseException as error:  # not of one session's work: nobody may wait for what will not come
                for seat in self.seats:
                    seat.fail(error)
                return False

    def _most_urgent(self) -> bool:
        waiting = [seat for seat in self.seats if self._look(seat)]
        if not waiting:
            return False
        waiting.sort(key=lambda seat: seat.deadline)
        together = self._together(waiting)
        pieces = [seat.work.needs() for seat in together]
        start = self.clock()
        try:
            self.serve(together)
        except BaseException as error:
            for seat in together:
                seat.fail(error)
                self.costs.forget(seat)
        else:
            self.costs.charge(together, pieces, self.clock() - start)
            self._measured_at = self.clock()
        return True

    def _look(self, seat: Seat) -> bool:
        try:
            return seat.look()
        except BaseException as error:
            seat.fail(error)
            return False

    def _together(self, waiting: list[Seat]) -> list[Seat]:
        """The most urgent session, and those whose evaluations fit into the same one. While there is room in it, a
        session that could join it by beginning its chunk comes before it."""
        first = waiting[0]
        evaluating = [s for s in waiting if s.work.needs() is Piece.EVALUATE and s.work.turn is not None]
        if first not in evaluating:
            return [first]
        if len(evaluating) < self.together:
            joining = [s for s in waiting if s.work.needs() is Piece.BEGIN]
            if joining:
                return joining[:1]
        return evaluating[: self.together]

    def serve(self, seats: list[Seat]) -> None:
        """Compute the next piece of one session, or the next evaluation of several."""
        first = seats[0]
        if len(seats) > 1:
            self.sampler.step.run([seat.work.turn for seat in seats if seat.work.turn is not None])
            for seat in seats:
                seat.work.advance()
        elif (piece := first.work.needs()) is not None:
            _compute(first.work, piece, late=piece is Piece.BEGIN and self._is_late(first))
            if piece is Piece.DECODE:
                first.done()
        if self.model.device.type == "cuda":
            self._wait_for_the_piece_before()

    def _is_late(self, seat: Seat) -> bool:
        """Whether a chunk has had to wait, and its viewer will have to."""
        now, each = self.clock(), self.costs.chunk
        return seat.deadline < now + each and seat.waited(now) > each / 2

    def _wait_for_the_piece_before(self) -> None:
        """Pieces on a GPU are queued. A queue of more than two would make an urgent one wait."""
        done = torch.cuda.Event()
        done.record()
        self._running.append(done)
        if len(self._running) >= QUEUED:
            self._running.popleft().synchronize()


def _compute(work: Work, piece: Piece, late: bool = False) -> None:
    match piece:
        case Piece.BEGIN:
            work.begin(late)
        case Piece.EVALUATE:
            work.evaluate()
        case Piece.DECODE:
            work.decode()


def _check_viewer(model: Network, avatar: Avatar, seed: int) -> None:
    if not isinstance(avatar, Avatar):
        raise AvatarError(f"session: avatar: expected what model.prepare(photo) gave, got {type(avatar).__name__}")
    avatar.require(model.fingerprint)
    noise.normal(seed, 0, 1)  # refuses a seed out of range now


def _check(sampling: Any, lanes: int, sessions: int, backlog: float | None, fewer_steps: int | None) -> None:
    """Counts that no family takes. What only one of them does not take, it refuses itself."""
    for name, value, low in (("lanes", lanes, branches(sampling)), ("sessions", sessions, 1)):
        if type(value) is not int or value < low:
            why = " (guidance takes two)" if low > 1 else ""
            raise ArgumentError(f"engine: {name}: expected an integer of at least {low}{why}, got {value!r}")
    if backlog is not None and not (isinstance(backlog, int | float) and backlog > 0):
        raise ArgumentError(f"engine: backlog: expected seconds above 0 or None, got {backlog!r}")
    if fewer_steps is not None and (type(fewer_steps) is not int or not 1 <= fewer_steps < sampling.steps):
        expected = f"an integer in 1..{sampling.steps - 1} or None"
        raise ArgumentError(f"engine: fewer_steps: expected {expected}, got {fewer_steps!r}")
