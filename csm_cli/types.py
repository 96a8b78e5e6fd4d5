"""The core types that flow from a script to a file. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path


@dataclass(frozen=True)
class GenerationOptions:
    """Generation options as somebody gave them; None means unset, so that a 0 counts.

    `max_duration` is in seconds; 0 stands for `auto`: a cap derived from the text.
    `depth_*` follow the backbone's values where unset. Temperature 0 is greedy, top_k 0 keeps every code.
    """

    temperature: float | None = None
    top_k: int | None = None
    depth_temperature: float | None = None
    depth_top_k: int | None = None
    seed: int | None = None
    max_duration: float | None = None

    def over(self, base: GenerationOptions) -> GenerationOptions:
        """These options where set, `base` elsewhere."""
        pairs = ((f.name, getattr(self, f.name), getattr(base, f.name)) for f in fields(self))
        return GenerationOptions(**{name: mine if mine is not None else theirs for name, mine, theirs in pairs})

    def completed(self, published: GenerationOptions) -> GenerationOptions:
        """These options over those a checkpoint was published with.

        Where somebody asked for another backbone value, the depth decoder follows that, not what was published for it.
        """
        temperature = published.depth_temperature if self.temperature is None else None
        top_k = published.depth_top_k if self.top_k is None else None
        return self.over(replace(published, depth_temperature=temperature, depth_top_k=top_k))


@dataclass(frozen=True)
class RetryPolicy:
    """How takes are looked after.

    trim: one that falls silent or gets stuck ends early, is trimmed, and all are judged. retries: so many more, each
    with the next seed, where none is good. takes: so many are made in any case, and the best is kept. split: a longer
    text is spoken in parts of about so many characters; 0 keeps every turn whole. stream: sound is told of as it is
    decoded, so that nothing can be taken back.
    """

    trim: bool = False
    max_retries: int = 0
    takes: int = 1
    chunk_chars: int = 0
    stream: bool = False


@dataclass(frozen=True)
class Recording:
    """Recorded speech: a file, or the part of it from `start` to `end` in seconds.

    codes: where its codes lie, a .npy [T, K], so that it need not be encoded. parts: where a turn was spoken in parts,
    each as it was spelled, and its frames. voice: the name of the saved voice it is, whose codes are kept.
    """

    path: Path
    start: float | None = None
    end: float | None = None
    codes_path: Path | None = None
    chunks: tuple[tuple[str, int], ...] = ()
    voice: str = ""


@dataclass(frozen=True)
class Turn:
    """What one speaker says.

    speaker: the number the model reads, as in "[0]text"; name: the speaker as the script writes it.
    recording: speech that exists; the model hears it and does not speak this turn.
    gap: seconds of silence before the turn in the track; negative overlaps the turn before.
    gain: decibels applied to the turn in the track.
    options: this turn's own options, already laid over its speaker's.
    """

    speaker: int
    text: str
    name: str = ""
    id: str = ""
    recording: Recording | None = None
    gap: float = 0.0
    gain: float = 0.0
    options: GenerationOptions = field(default_factory=GenerationOptions)


@dataclass(frozen=True)
class Conversation:
    """Turns to be spoken in order, after `context` turns that are heard but not written.

    Every context turn has a recording; voice prompts come first. `tail`: seconds of silence after the last turn.
    `defaults`: the script's own options, below flags and above the environment. `lexicon`: words and how they are
    spelled for the model; texts keep them as written. `loudness`: of the track, in LUFS.
    """

    turns: tuple[Turn, ...]
    context: tuple[Turn, ...] = ()
    id: str = ""
    title: str = ""
    tail: float = 0.0
    defaults: GenerationOptions = field(default_factory=GenerationOptions)
    loudness: float | None = None
    lexicon: Mapping[str, str] = field(default_factory=dict)
