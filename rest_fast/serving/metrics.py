"""A server's numbers for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from rest_fast.serving.service import Service


class _Collector:
    """Reads a service when it is asked, so that nothing has to be kept up to date."""

    def __init__(self, service: Service):
        self.service = service

    def collect(self) -> list[Metric]:
        service, engine = self.service, self.service.engine.metrics()
        held = sum(viewer.pacer.held for viewer in service.viewers)
        frames = sum(viewer.pacer.frames for viewer in service.viewers)
        late = sum(viewer.pacer.late for viewer in service.viewers)
        counts = service.counts
        found = [
            GaugeMetricFamily("rest_fast_sessions", "Sessions that are open.", engine.sessions),
            GaugeMetricFamily("rest_fast_capacity", "Sessions that can be served.", engine.capacity),
            GaugeMetricFamily("rest_fast_chunk_seconds", "Mean cost of a chunk.", engine.chunk_ms / 1e3),
            GaugeMetricFamily("rest_fast_busy", "Share of the time in which the engine computed.", engine.busy),
            GaugeMetricFamily("rest_fast_late_seconds", "By which open sessions' clients were late.", late),
            CounterMetricFamily("rest_fast_sessions_opened", "Sessions opened.", counts.opened),
            CounterMetricFamily("rest_fast_sessions_refused", "Sessions refused for want of room.", counts.refused),
            CounterMetricFamily("rest_fast_sessions_failed", "Sessions that a fault has ended.", counts.failed),
            CounterMetricFamily("rest_fast_frames", "Frames shown.", counts.frames + frames),
            CounterMetricFamily("rest_fast_frames_held", "Of them, repeated.", counts.held + held),
        ]
        if engine.pieces is not None:
            pieces = GaugeMetricFamily("rest_fast_piece_seconds", "A piece of computation.", labels=["quantile"])
            for name in ("p50", "p95", "p99"):
                pieces.add_metric([f"0.{name[1:]}"], getattr(engine.pieces, f"{name}_ms") / 1e3)
            found.append(pieces)
        return found


def exposition(service: Service) -> str:
    """The text that Prometheus reads."""
    registry = CollectorRegistry()
    registry.register(_Collector(service))
    return generate_latest(registry).decode()
