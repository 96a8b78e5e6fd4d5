"""Conversations, turns and their options: the types shared by all rooms. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

# Long texts are generated in chunks of about this many characters. Measured with the bundled voice: 48 of 48 texts
# right at 67 characters a chunk, 44 of 48 at 101, 34 of 45 at 166.
DEFAULT_LANGUAGE = "en"
DEFAULT_CHUNK_CHARS = 80
# Options of the depth decoder, and the backbone's that each takes its value from where it is unset.
FOLLOWS = {"depth_temperature": "temperature", "depth_top_k": "top_k"}


@dataclass(frozen=True)
class Sampling:
    """How codes are sampled. Temperature 0 is greedy, top_k 0 keeps every code; depth_*: of the depth decoder."""

    temperature: float = 0.0
    top_k: int = 0
    depth_temperature: float = 0.0
    depth_top_k: int = 0


@dataclass(frozen=True)
class GenerationOptions:
    """Generation options of one level (flags, a turn, script defaults, ...); None means unset, 0 is a value.

    `max_duration` is in seconds; 0 means `auto`: a limit derived from the text. Temperature 0 is greedy, top_k 0 keeps
    every code. Where `depth_temperature` or `depth_top_k` is None after merging, the depth decoder uses the backbone's
    value.
    """

    temperature: float | None = None
    top_k: int | None = None
    depth_temperature: float | None = None
    depth_top_k: int | None = None
    seed: int | None = None
    max_duration: float | None = None

    def over(self, base: GenerationOptions) -> GenerationOptions:
        """These options where set, those of the lower level `base` elsewhere.

        A depth decoder's value counts only where no higher level sets the backbone's: `--temperature 0.5` is not mixed
        with a depth_temperature from a file or from the checkpoint. Associative, so levels can be merged in any order.
        """
        unset = (each.name for each in fields(self) if getattr(self, each.name) is None)
        inherited = (name for name in unset if getattr(self, FOLLOWS.get(name, name)) is None)
        return replace(self, **{name: getattr(base, name) for name in inherited})

    @property
    def sampling(self) -> Sampling:
        """Greedy over all codes where unset; the depth decoder follows the backbone."""
        temperature, top_k = self.temperature or 0.0, self.top_k or 0
        return Sampling(
            temperature=temperature,
            top_k=top_k,
            depth_temperature=temperature if self.depth_temperature is None else self.depth_temperature,
            depth_top_k=top_k if self.depth_top_k is None else self.depth_top_k,
        )

    def set_values(self) -> dict[str, float | int]:
        """The options that are set, by name: what fingerprints cover, so that a new option changes none of them."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class RetryPolicy:
    """How takes are made and chosen. The defaults change nothing about what the model generates.

    trim: end takes that fall silent or repeat one frame, trim them, and reject unusable ones. max_retries: more takes,
    each with the next seed, while none is usable. takes: make so many of each chunk and keep the best. chunk_chars:
    split longer texts into chunks of about so many characters; 0 for none. stream: emit audio as soon as it is decoded.
    The first take that is not silent then counts: `takes` has no effect, and a fault ends no conversation.
    """

    trim: bool = False
    max_retries: int = 0
    takes: int = 1
    chunk_chars: int = 0
    stream: bool = False


@dataclass(frozen=True)
class Recording:
    """Recorded speech: an audio file, or its range from `start` to `end` in seconds.

    codes_path: its codes, a .npy [T, K], if they are cached. chunks: if it was generated in chunks, the text of each as
    the model got it, and its frames. voice: the name of the saved voice it belongs to.
    """

    path: Path
    start: float | None = None
    end: float | None = None
    codes_path: Path | None = None
    chunks: tuple[tuple[str, int], ...] = ()
    voice: str = ""


@dataclass(frozen=True)
class Turn:
    """One speaker's turn.

    speaker: its number, which the model reads as in "[0]text"; name: the speaker's name in the script.
    recording: existing speech, used as context and in the track instead of generated speech.
    gap: seconds of silence before the turn in the track; a negative gap overlaps the turn before.
    gain: of the turn in the track, in dB. speed: its pace in the track, by time stretching that keeps the pitch; 2
    halves its duration. Recordings of the script have 1.
    options: of this turn, merged over those of its speaker.
    """

    speaker: int
    text: str
    name: str = ""
    id: str = ""
    recording: Recording | None = None
    gap: float = 0.0
    gain: float = 0.0
    speed: float = 1.0
    options: GenerationOptions = field(default_factory=GenerationOptions)

    @property
    def label(self) -> str:
        """The speaker as stems, subtitles and messages name it."""
        return self.name or str(self.speaker)


@dataclass(frozen=True)
class TimedWord:
    """A word as written, and its span in seconds, which is a guess unless a recognizer `recognized` the word."""

    text: str
    start: float
    end: float
    recognized: bool = True


@dataclass(frozen=True)
class Conversation:
    """Turns to generate in order, after `context` turns, which are not part of the output and all have recordings.

    id: unique within a run. tail: seconds of silence after the last turn. defaults: options of the script, below a
    turn's and above those of the environment. lexicon: words and their respellings for the model; texts stay as
    written. loudness: of the track, in LUFS. extra: other columns of a manifest's row, carried to the results.
    language: whose rules split texts into sentences. normalize: write out numbers and abbreviations for the model.
    """

    turns: tuple[Turn, ...]
    context: tuple[Turn, ...] = ()
    id: str = ""
    title: str = ""
    tail: float = 0.0
    defaults: GenerationOptions = field(default_factory=GenerationOptions)
    loudness: float | None = None
    lexicon: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    language: str = DEFAULT_LANGUAGE
    normalize: bool = False


def resolve_options(
    flags: GenerationOptions, turn: Turn, defaults: GenerationOptions, checkpoint: GenerationOptions
) -> GenerationOptions:
    """The options a turn is generated with: flags over the turn's own over the script's over the checkpoint's.

    The seed is the one that was asked for; `turn_seed` says what it is for one of several turns.
    """
    return flags.over(turn.options).over(defaults).over(checkpoint)


def turn_seed(flags: GenerationOptions, turn: Turn, index: int, base_seed: int) -> int:
    """The seed of turn `index` (from 0): `--seed` + index, else the turn's own, else `base_seed` + index."""
    if flags.seed is None and turn.options.seed is not None:
        return turn.options.seed
    return ((base_seed if flags.seed is None else flags.seed) + index) % 2**63
