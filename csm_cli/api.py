"""The Python API: `load` a model, then `Model.say`, `Model.converse` and `Model.stream`. Used through `import csm_cli`.

It generates the same audio as the commands for the same options. Environment variables and configuration files do not
count here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from csm_cli.audio.formats import AudioEncoding
from csm_cli.audio.io import Audio, write_audio
from csm_cli.checkpoint import Checkpoint, open_checkpoint
from csm_cli.device import pick_device, pick_dtype
from csm_cli.errors import GenerationFailed, UsageError
from csm_cli.generation.events import AudioChunk, ConversationFailed, Utterance, audio_tags, mix_utterances
from csm_cli.generation.synthesizer import Synthesizer
from csm_cli.generation.take import worst_stop
from csm_cli.script import parse_context, parse_say, parse_voice, read_script, script_from
from csm_cli.settings import validate
from csm_cli.types import DEFAULT_CHUNK_CHARS, DEFAULT_LANGUAGE, Conversation, GenerationOptions, RetryPolicy, Turn

Samples = NDArray[np.float32]


class Options(TypedDict, total=False):
    """Options of one call; all are optional.

    seed: repeats a result; drawn and reported by `Speech.seed` if unset. temperature, top_k: of sampling; 0 = greedy,
    0 = all codes. depth_temperature, depth_top_k: the same of the depth decoder, which follows the backbone.
    max_duration: seconds; default: derived from the text. retries: more takes if one is unusable; default 2. takes:
    make so many takes and keep the best; default 1. chunk_chars: split long texts into chunks of about so many
    characters; default 80, 0 for none. trim: False for takes as the model generates them, without trimming, retries or
    chunks.
    language: whose rules split texts into sentences; default "en". normalize: write out numbers and abbreviations.
    lexicon: words and how each is spelled for the model, or the path of a file with them.
    """

    seed: int
    temperature: float
    top_k: int
    depth_temperature: float
    depth_top_k: int
    max_duration: float
    retries: int
    takes: int
    chunk_chars: int
    trim: bool
    language: str
    normalize: bool
    lexicon: Mapping[str, str] | str | Path


@dataclass(frozen=True, eq=False)
class Speech:
    """Generated speech. samples: mono float32 [N], full scale -1 to 1; rate: in Hz.

    stop: "eos" (complete), "cap" (reached the maximum duration), "silence" or "repeat" (ended early) or "recorded"; of
    several turns the worst. seed: of the first generated turn, generates the same speech again with the same options;
    None if all are recorded. turns: that it consists of. warnings: for the user.
    """

    samples: Samples
    rate: int
    stop: str
    seed: int | None
    turns: tuple[Turn, ...]
    warnings: tuple[str, ...]
    _utterances: tuple[Utterance, ...] = field(repr=False)
    _checkpoint: Checkpoint = field(repr=False)

    @property
    def turn(self) -> Turn:
        """The first turn, the only one of what `Model.converse` yields."""
        return self.turns[0]

    @property
    def duration(self) -> float:
        """Seconds."""
        return len(self.samples) / self.rate

    def save(
        self,
        path: str | PathLike[str],
        *,
        rate: int | None = None,
        stereo: bool = False,
        bits: str | None = None,
        quality: float | None = None,
    ) -> Path:
        """Writes a file of the format of its suffix, atomically; tagged as synthetic. Returns the path.

        rate: in Hz. stereo: two equal channels. bits: "16", "24" or "float", of wav and flac. quality: of mp3, ogg,
        opus and m4a, 0 to 10.

        Raises:
            UsageError: an impossible value. OutputRefused: unknown suffix, a format without such an option, or a
                directory. OutputFailed: the disk is full or failed.
        """
        target = Path(path).expanduser()
        tags, encoding = (
            audio_tags(self._utterances, self._checkpoint),
            AudioEncoding(None, bits, rate, stereo, quality),
        )
        write_audio(target, Audio(self.samples, self.rate), tags=tags, encoding=encoding)
        return target


class Model:
    """A loaded model; see `load`. One call at a time: it is not thread-safe."""

    def __init__(self, synthesizer: Synthesizer) -> None:
        self._synthesizer = synthesizer

    @property
    def name(self) -> str:
        """The Hugging Face id or path of the checkpoint, or the bundled voice's name."""
        return self._synthesizer.checkpoint.name

    @property
    def device(self) -> str:
        return str(self._synthesizer.device)

    @property
    def rate(self) -> int:
        """Samples per second."""
        return self._synthesizer.codec.rate

    def say(
        self,
        text: str,
        *,
        voice: str | None = None,
        speaker: int = 0,
        context: Iterable[str | Turn] = (),
        **options: Unpack[Options],
    ) -> Speech:
        """Generates a text, as `csm say` does: `"Hello."`, or several turns: `"[0]Hello. [1]Hi!"`.

        voice: a saved voice, a recording with its transcript in a .txt file beside it, or "FILE=TEXT". speaker: number
        of the speaker of untagged text, 0 to 999. context: earlier turns, oldest first, as "[n]FILE=TEXT" or as turns
        with a recording.

        Raises:
            GenerationFailed: no usable take. ScriptInvalid, VoiceNotFound, ModelNotFound, PromptTooLong, UsageError:
                invalid arguments.

        Example:
            speech = model.say("Good morning.", voice="ash", seed=1)
            speech.save("morning.wav")
        """
        return next(self.say_all([text], voice=voice, speaker=speaker, context=context, **options))

    def say_all(
        self,
        texts: Iterable[str],
        *,
        voice: str | None = None,
        speaker: int = 0,
        context: Iterable[str | Turn] = (),
        **options: Unpack[Options],
    ) -> Iterator[Speech]:
        """Generates many independent texts, as many at a time as the model has slots; yields in the order of the texts.

        Arguments and errors as for `say`; the first error ends the iteration.
        """
        flags, policy, rules = _parse_options(options)
        context_turns = _context_turns(voice, speaker, context)
        turns = [parse_say(text, speaker) for text in texts]
        conversations = [Conversation(each, context_turns, str(number), **rules) for number, each in enumerate(turns)]
        return self._in_order(conversations, flags, policy)

    def converse(
        self, script: str | PathLike[str] | Mapping[str, Any] | Conversation, **options: Unpack[Options]
    ) -> Iterator[Speech]:
        """Generates a script turn by turn, as `csm converse` does; yields each turn when it is finished.

        script: a YAML, JSON or JSONL file, the same as a dict (paths relative to the working directory), or a
        `Conversation`. Options override the script's. `mix` makes one track of the turns.

        Raises:
            ScriptInvalid: with all diagnostics, before anything is generated. GenerationFailed: a turn has no usable
                take. AudioUnreadable, PromptTooLong, UsageError.

        Example:
            turns = list(model.converse("dialogue.yaml", seed=1))
            csm_cli.mix(turns, loudness=-19).save("dialogue.wav")
        """
        flags, policy, rules = _parse_options(options)
        if isinstance(script, Mapping):
            conversation = script_from(script)
        else:
            conversation = script if isinstance(script, Conversation) else read_script(Path(script).expanduser())
        checkpoint = self._synthesizer.checkpoint
        utterances = self._utterances([replace(conversation, **rules)], flags, policy)
        return (_speech([each], each.audio.samples, checkpoint) for each in utterances)

    def stream(
        self,
        text: str,
        *,
        voice: str | None = None,
        speaker: int = 0,
        context: Iterable[str | Turn] = (),
        **options: Unpack[Options],
    ) -> Iterator[Samples]:
        """Generates a text and yields its audio as it is decoded: float32 chunks [N] at `rate` samples per second.

        A stream has one take, without trimming, retries or chunks of text. Arguments and errors as for `say`.

        Example:
            for chunk in model.stream("Good morning."):
                device.write(chunk)
        """
        flags, _, rules = _parse_options(options)
        conversation = Conversation(parse_say(text, speaker), _context_turns(voice, speaker, context), **rules)
        return self._chunks(conversation, flags)

    def _chunks(self, conversation: Conversation, flags: GenerationOptions) -> Iterator[Samples]:
        for event in self._synthesizer.speak([conversation], flags, RetryPolicy(stream=True)):
            if isinstance(event, ConversationFailed):
                raise event.error
            if isinstance(event, AudioChunk):
                yield event.samples

    def _utterances(
        self, conversations: Sequence[Conversation], flags: GenerationOptions, policy: RetryPolicy
    ) -> Iterator[Utterance]:
        """Raises the error of the first conversation that fails."""
        for event in self._synthesizer.speak(conversations, flags, policy):
            if isinstance(event, ConversationFailed):
                raise event.error
            if isinstance(event, Utterance):
                if event.fault:
                    faults = ", ".join(f"{take.fault} with seed {take.seed}" for take in event.takes if take.fault)
                    raise GenerationFailed(
                        f'turn {event.number} ({event.turn.label}: "{event.turn.text[:40]}") {faults}; '
                        "try another seed or more retries"
                    )
                yield event

    def _in_order(
        self, conversations: Sequence[Conversation], flags: GenerationOptions, policy: RetryPolicy
    ) -> Iterator[Speech]:
        """The track of each conversation; conversations finish in any order."""
        finished: dict[str, list[Utterance]] = {each.id: [] for each in conversations}
        waiting = deque(conversations)
        for utterance in self._utterances(conversations, flags, policy):
            finished[utterance.conversation.id].append(utterance)
            while waiting and len(finished[waiting[0].id]) == len(waiting[0].turns):
                utterances = finished.pop(waiting.popleft().id)
                yield _speech(utterances, mix_utterances(utterances).audio.samples, self._synthesizer.checkpoint)


def load(
    model: str | PathLike[str] | None = None,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    adapter: str | PathLike[str] | None = None,
    quantize: str = "none",
    compile: bool = False,
    offline: bool = False,
    slots: int = 1,
) -> Model:
    """Loads a model; downloads it from Hugging Face if necessary.

    model: a Hugging Face id such as "sesame/csm-1b", a folder or a weights file; None for the bundled voice. device:
    "auto", "cpu", "cuda", "cuda:N" or "mps". dtype: "auto", "float32", "bfloat16" or "float16". revision: commit,
    branch or tag of the id. adapter: a LoRA adapter, merged into the model. quantize: "none" or "int8". compile: use
    torch.compile. offline: use cached files only. slots: texts that `say_all` generates at a time.

    Raises:
        ModelError: not found, gated, offline or invalid. DeviceError: no such device. UsageError: invalid arguments.

    Example:
        model = csm_cli.load("sesame/csm-1b", device="cuda")
    """
    validate({"device": device, "dtype": dtype, "quantize": quantize, "offline": offline}, str)
    place = pick_device(device)  # before gigabytes are downloaded
    names = [None if each is None else str(each) for each in (model, revision, adapter)]
    checkpoint = open_checkpoint(*names, offline=offline)
    return Model(Synthesizer(checkpoint, place, pick_dtype(dtype, place), slots, compile, int8=quantize == "int8"))


def mix(turns: Sequence[Speech], *, tail: float = 0.0, loudness: float | None = None) -> Speech:
    """One track of the turns of a conversation, with the gaps and gains of its script.

    tail: seconds of silence at the end. loudness: of the track in LUFS (EBU R128), with speakers matched to each other.

    Raises:
        UsageError: no turns.
    """
    if not turns:
        raise UsageError("there are no turns to mix")
    utterances = [utterance for turn in turns for utterance in turn._utterances]
    return _speech(utterances, mix_utterances(utterances, tail, loudness).audio.samples, turns[0]._checkpoint)


def _speech(utterances: Sequence[Utterance], samples: Samples, checkpoint: Checkpoint) -> Speech:
    generated = [each for each in utterances if each.stop != "recorded"]
    return Speech(
        samples=samples,
        rate=utterances[0].audio.rate,
        stop=worst_stop(each.stop for each in generated) if generated else "recorded",
        seed=generated[0].seed if generated else None,
        turns=tuple(each.turn for each in utterances),
        warnings=tuple(warning for each in utterances for warning in each.warnings),
        _utterances=tuple(utterances),
        _checkpoint=checkpoint,
    )


def _context_turns(voice: str | None, speaker: int, context: Iterable[str | Turn]) -> tuple[Turn, ...]:
    turns = [parse_voice(voice, speaker)] if voice else []
    turns += [parse_context(each) if isinstance(each, str) else each for each in context]
    return tuple(turns)


def _parse_options(options: Options) -> tuple[GenerationOptions, RetryPolicy, dict[str, Any]]:
    """Validated options, and those that are fields of a conversation; the defaults are those of the commands.

    Raises:
        UsageError: an impossible value. TypeError: an unknown option.
    """
    if unknown := set(options) - set(Options.__annotations__):
        raise TypeError(f"unknown option {min(unknown)!r}; known: {', '.join(Options.__annotations__)}")
    values: dict[str, Any] = {name: value for name, value in options.items() if value is not None}
    trim, chunk_chars = bool(values.pop("trim", True)), values.pop("chunk_chars", DEFAULT_CHUNK_CHARS)
    if chunk_chars:
        validate({"split": chunk_chars}, lambda _: "chunk_chars")
    lexicon = values.pop("lexicon", None)
    checked: dict[str, Any] = dict(validate({"retries": 2, "takes": 1} | values, str))
    policy = RetryPolicy(True, checked.pop("retries"), checked.pop("takes"), chunk_chars)
    rules: dict[str, Any] = {name: checked.pop(name) for name in ("language", "normalize") if name in checked}
    if lexicon is not None:
        from csm_cli.script.lexicon import read_lexicon

        rules["lexicon"] = dict(lexicon) if isinstance(lexicon, Mapping) else read_lexicon(lexicon)
    if rules.get("normalize"):
        from csm_cli.generation.normalization import check_normalizer

        check_normalizer(rules.get("language", DEFAULT_LANGUAGE))
    return GenerationOptions(**checked), policy if trim else RetryPolicy(), rules
