"""How many viewers a server of the demo carries: sessions against frames in time, over loopback.

    python benchmarks/serving_load.py --out benchmarks/results/serving_cpu.json --plot docs/serving.png

``rest-fast serve`` runs as its own process. The clients, all in this one, speak in real time through
``WS /v1/avatar/stream`` and discard the JPEGs that come, so server, engine and encoding are measured and drawing not.
A player begins 0.12 s behind the first frame, as the live page does; a frame is *in time* if it is there when the
player wants it, and a late one stops the player until it comes. A *held* frame is one repeated by the server. *Jitter*:
what the time between two frames deviates from 40 ms.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import where
from websockets.asyncio.client import connect

from rest_fast.latency.viewers import phases, recorded, until
from rest_fast.media.av_frames import as_int16
from rest_fast.serving import protocol
from rest_fast.units import FPS, RATE

PIECE = RATE // 50  # samples of a message: 20 ms
CHUNK = 0.96  # seconds
BUFFER = 3 / FPS  # seconds that the player waits behind the first frame


@dataclass
class Client:
    """One viewer, who speaks without a pause."""

    came: list[tuple[float, int, bool]] = field(default_factory=list)  # when, index on the media clock, held
    began: float = 0.0  # when the first sample of speech was sent
    first: float | None = None  # seconds from there to the first frame of speech
    bytes: int = 0

    async def watch(self, url: str, start: float, seconds: float) -> None:
        async with connect(url, max_size=None) as server:
            await server.send(json.dumps({"type": "session.start", "avatar": "portrait", "sample_rate": RATE}))
            ready = json.loads(await server.recv())
            assert ready["type"] == "session.ready", ready
            speaking = asyncio.create_task(self.speak(server, start, seconds))
            try:
                async for message in server:
                    now = time.monotonic()
                    self.note(message, now)
                    if now > start + seconds:
                        break
            finally:
                speaking.cancel()

    async def speak(self, server: Any, start: float, seconds: float) -> None:
        samples = as_int16(recorded(seconds))
        await until(start, time.monotonic)
        self.began = time.monotonic()
        for at in range(0, len(samples), PIECE):
            await until(start + at / RATE, time.monotonic)
            await server.send(samples[at : at + PIECE].tobytes())

    def note(self, message: str | bytes, now: float) -> None:
        if isinstance(message, bytes):
            frame = protocol.read_frame(message)
            self.bytes += len(message)
            self.came.append((now, frame.index, bool(frame.flags & protocol.HELD)))
        elif self.first is None and self.began and json.loads(message)["type"] == "speech.started":
            self.first = now - self.began


def seen(client: Client) -> dict[str, Any]:
    """What one viewer saw once speech had begun."""
    spoken = client.began + (client.first or 0.0)
    came = [one for one in client.came if one[0] >= spoken]
    start, late = came[0][0] + BUFFER, 0  # when the first one is played
    for at, index, _ in came:
        due = start + (index - came[0][1]) / FPS
        late += at > due
        start += max(0.0, at - due)
    times = np.array([at for at, *_ in came])
    deviations = np.abs(np.diff(times) - 1 / FPS)
    p50, p95, p99 = (round(1e3 * float(p), 1) for p in np.percentile(deviations, [50, 95, 99]))
    return {
        "frames": len(came),
        "in_time": round(1 - late / len(came), 4),
        "held": sum(held for *_, held in came),
        "jitter_p50_ms": p50,
        "jitter_p95_ms": p95,
        "jitter_p99_ms": p99,
        "first_frame_ms": None if client.first is None else round(1e3 * client.first),
        "kbytes_per_second": round(client.bytes / 1e3 / max(1e-9, client.came[-1][0] - client.came[0][0]), 1),
    }


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None, "the server ended"
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise TimeoutError("the server did not begin to listen")


async def crowd(port: int, count: int, seconds: float) -> list[Client]:
    clients, start = [Client() for _ in range(count)], time.monotonic() + 3
    url = f"ws://127.0.0.1:{port}/v1/avatar/stream"
    begin = phases(count, CHUNK)
    await asyncio.gather(*(one.watch(url, start + at, seconds) for one, at in zip(clients, begin)))
    return clients


def run(count: int, seconds: float) -> dict[str, Any]:
    port = free_port()
    command = [sys.executable, "-m", "rest_fast", "serve", "--port", str(port), "--no-page", "--sessions", str(count)]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        wait_for(f"http://127.0.0.1:{port}/healthz", server)
        before, began = cpu_seconds(server.pid), time.monotonic()
        clients = asyncio.run(crowd(port, count, seconds))
        busy = (cpu_seconds(server.pid) - before) / (time.monotonic() - began)
    finally:
        server.terminate()
        server.wait(30)
    return {"viewers": count, "seconds": seconds, "cores": round(busy, 2), "clients": [seen(one) for one in clients]}


def cpu_seconds(pid: int) -> float:
    """That a process has used so far, all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--viewers", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    runs = []
    for count in args.viewers:
        runs.append(run(count, args.seconds))
        print(json.dumps(runs[-1]), flush=True)
    stored = {"runs": runs, "environment": where.environment(where.commit_info())}
    if args.out:
        args.out.write_text(json.dumps(stored, indent=1) + "\n")
    if args.plot:
        plot(runs, args.plot)


def plot(runs: list[dict[str, Any]], path: Path) -> None:
    from rest_fast.evaluation import charts

    counts = [one["viewers"] for one in runs]

    def worst(key: str, choose: Any) -> list[float]:
        return [choose(client[key] for client in one["clients"]) for one in runs]

    panels = [
        charts.Panel(
            "frames in time, %", "viewers", counts, {"worst viewer": [100 * x for x in worst("in_time", min)]}, counts
        ),
        charts.Panel("frames held", "viewers", counts, {"worst viewer": worst("held", max)}, counts),
        charts.Panel(
            "jitter, ms",
            "viewers",
            counts,
            {"p95, worst": worst("jitter_p95_ms", max), "p99, worst": worst("jitter_p99_ms", max)},
            counts,
        ),
    ]
    charts.plot(panels, path)


if __name__ == "__main__":
    main()
