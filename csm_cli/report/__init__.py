"""How results are presented: numbers in text, and the HTML report of a conversation or a batch."""

from __future__ import annotations

from collections.abc import Iterable


def format_clock(seconds: float) -> str:
    """Such as 1:05 or 1:00:05."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def format_duration(seconds: float) -> str:
    """Such as 5.2 s, 2 min 5 s or 1 h 5 min."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{seconds:.1f} s"


def format_ranges(numbers: Iterable[int]) -> str:
    """Numbers in their order, consecutive ones as a range: 1-3, 7."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][-1] + 1:
            ranges[-1] = [ranges[-1][0], number]
        else:
            ranges.append([number])
    return ", ".join("-".join(map(str, each)) for each in ranges)


def format_count(count: int, noun: str) -> str:
    """Such as 1 turn or 2 turns."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
