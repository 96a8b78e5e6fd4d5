"""Prometheus metrics of the server."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10, 20, 30, 60, 120)
_FACTORS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 5, 10)


class Metrics:
    """One server's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter("csm_requests", "Requests that were accepted.", registry=registry)
        self.refused = Counter("csm_requests_refused", "Requests refused with 503.", registry=registry)
        self.failed = Counter("csm_requests_failed", "Requests that failed.", registry=registry)
        self.cancelled = Counter("csm_requests_cancelled", "Requests whose client left.", registry=registry)
        self.underruns = Counter(
            "csm_underruns", "Chunks of audio that were later than a player needed them.", registry=registry
        )
        self.audio = Counter("csm_audio_seconds", "Seconds of audio generated.", registry=registry)
        self.first_audio = Histogram(
            "csm_time_to_first_audio_seconds",
            "From a request to its first audio.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.rtf = Histogram(
            "csm_real_time_factor",
            "Seconds in a slot per second of audio.",
            buckets=_FACTORS,
            registry=registry,
        )
        self.mean_seconds = 1.0  # of a job in its slot, as a moving average

    def watch(self, queued: Callable[[], int], busy: Callable[[], int], slots: int, max_queue: int) -> None:
        """Gauges of the queue and the slots."""
        for name, text, value in (
            ("csm_queue_length", "Requests that wait for a slot.", queued),
            ("csm_slots_busy", "Slots that serve a request.", busy),
            ("csm_slots", "Slots.", lambda: slots),
            ("csm_queue_limit", "Requests that may wait.", lambda: max_queue),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

    def watch_conversations(self, number: Callable[[], int], seconds: Callable[[], float]) -> None:
        """Gauges of the conversations that are held."""
        for name, text, value in (
            ("csm_conversations", "Conversations that are held.", number),
            ("csm_conversations_audio_seconds", "Seconds of audio in conversations.", seconds),
        ):
            Gauge(name, text, registry=self.registry).set_function(value)

    def watch_sockets(self, number: Callable[[], int]) -> None:
        """A gauge of the text streams that are open."""
        Gauge("csm_text_streams", "Open text streams.", registry=self.registry).set_function(number)

    def finished(self, audio_seconds: float, seconds: float) -> None:
        """A turn of so much audio has taken so long in its slot."""
        self.audio.inc(audio_seconds)
        self.mean_seconds += (seconds - self.mean_seconds) / 8
        if audio_seconds:
            self.rtf.observe(seconds / audio_seconds)

    def render(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)
