"""How long a batch takes on machines that are not here, what it costs and stores: measured constants, multiplied.

Every constant says where it was measured. Nothing is measured when an estimate is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

CHARS_PER_SECOND = 14.0  # of speech; the bundled voice says 14 to 17, 27 November 2026
WAV_BYTES_PER_SECOND = 48_000  # 24 kHz, 16 bits, one channel
FLAC_SHARE = 0.6  # of the same audio as WAV: 24 lines of the bundled voice, 27 November 2026
RECORD_BYTES = 850  # of a result: 624 lines of the bundled voice, 27 November 2026
PARENT_SECONDS_PER_LINE = 0.0008  # of the parent's core: csm bench workers, 100,000 lines, 27 November 2026


@dataclass(frozen=True)
class DeviceSpeed:
    """seconds_per_second: of audio that one device generates in one second. source: where that was measured."""

    name: str
    seconds_per_second: float
    source: str


SPEEDS = {
    speed.name: speed
    for speed in (
        DeviceSpeed(
            "h200", 335.0, "measured: an H200, csm-1b's shapes, random weights, bfloat16, 32 rows, 23 November 2026"
        ),
        DeviceSpeed(
            "h100",
            234.0,
            "not measured: the H200's figure times the ratio of their memory bandwidths, 3.35 to 4.8 TB/s",
        ),
        DeviceSpeed(
            "cpu",
            46.0,
            "measured: half of two Xeon cores at 2.3 GHz, bundled voice, float32, 16 rows, 23 November 2026",
        ),
    )
}


@dataclass(frozen=True)
class BatchEstimate:
    """A batch on `devices` devices. lines, chars: to generate. price: of one device for an hour, if known."""

    lines: int
    chars: int
    devices: int
    speed: DeviceSpeed
    price: float | None = None

    @property
    def audio_seconds(self) -> float:
        return self.chars / CHARS_PER_SECOND

    @property
    def hours(self) -> float:
        """The devices' time, or the parent's where it is the longer one."""
        generating = self.audio_seconds / (self.devices * self.speed.seconds_per_second)
        return max(generating, self.lines * PARENT_SECONDS_PER_LINE) / 3600

    @property
    def parent_load(self) -> float:
        """Share of the time that the parent is busy; 1 where it is the limit."""
        return self.lines * PARENT_SECONDS_PER_LINE / (self.hours * 3600) if self.lines else 0.0

    def record(self) -> dict[str, Any]:
        wav = self.audio_seconds * WAV_BYTES_PER_SECOND
        hours = self.hours
        return {
            "lines": self.lines,
            "audio_hours": round(self.audio_seconds / 3600, 4),
            "devices": self.devices,
            "device": self.speed.name,
            "hours": round(hours, 4),
            "device_hours": round(hours * self.devices, 4),
            "cost": None if self.price is None else round(hours * self.devices * self.price, 2),
            "wav_bytes": round(wav),
            "flac_bytes": round(wav * FLAC_SHARE),
            "ledger_bytes": self.lines * RECORD_BYTES,
            "lines_per_second": round(self.lines / (hours * 3600), 2) if self.lines else 0.0,
            "parent_load": round(self.parent_load, 4),
            "sources": self.sources(),
        }

    def sources(self) -> dict[str, str]:
        """Where each constant was measured."""
        return {
            "speed": f"{self.speed.seconds_per_second:g} s of audio per second and device; {self.speed.source}",
            "length": f"{CHARS_PER_SECOND:g} characters per second of speech; the bundled voice says 14 to 17",
            "storage": f"WAV 48 kB/s by its format; FLAC {FLAC_SHARE:.0%} of it and {RECORD_BYTES} bytes a result; "
            "measured with the bundled voice, 27 November 2026",
            "parent": f"{1e3 * PARENT_SECONDS_PER_LINE:g} ms a line; measured with simulated workers "
            "(csm bench workers), 100,000 lines on a busy AMD EPYC, 27 November 2026",
            "left out": "loading the model, retries, failures, uneven ends; pauses and context in the lines",
        }
