"""A teacher that speaks an hour in four minutes: CMU's HTS voice `slt` of festival, with its pitch and tract changed.

Debian packages: festival, festvox-us-slt-hts, htsengine. festival says which phonemes a text has, in labels for
hts_engine, which makes the sound.
"""

from __future__ import annotations

import itertools
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from csm_cli.errors import CsmError
from csm_cli.recipe.corpus import RATE
from csm_cli.recipe.teacher import KokoroTeacher, TeacherRequest, TeacherSpeech

HTS_VOICE = Path("/usr/share/festival/voices/us/cmu_us_slt_arctic_hts/hts/cmu_us_slt_arctic_hts.htsvoice")
PARAMETRIC_VOICES = {
    "hts_slt": (),
    "hts_deep": ("-fm", "-8", "-a", "0.58", "-jf", "1.2"),  # 108 Hz, a longer vocal tract
    "hts_low": ("-fm", "-4", "-a", "0.57", "-jf", "1.3"),  # 136 Hz
}
"""hts_engine's options for each voice: half-tones, all-pass constant, weight of the pitch's global variance."""

_UNIT = RATE // 40
_TICKS = 10_000_000  # of a label's times, per second
_MARKS = ".,?!;:"
_PHONES = """
    aa=ɑ ae=æ ah=ʌ ao=ɔ aw=W ax=ə ay=I b=b ch=ʧ d=d dh=ð eh=ɛ er=ɚ ey=A f=f g=ɡ hh=h ih=ɪ iy=i jh=ʤ k=k l=l
    m=m n=n ng=ŋ ow=O oy=Y p=p r=ɹ s=s sh=ʃ t=t th=θ uh=ʊ uw=u v=v w=w y=j z=z zh=ʒ
"""
_SYMBOLS = dict(pair.split("=") for pair in _PHONES.split())
"""festival's phones as Kokoro's symbols."""

_SCHEME = """
(voice_cmu_us_slt_arctic_hts)
(Parameter.set 'Synth_Method 'None)
(define (describe name text)
  (let ((utterance (utt.synth (eval (list 'Utterance 'Text text)))) (labels (fopen (string-append name ".lab") "w"))
        (phones (fopen (string-append name ".txt") "w")))
    (mapcar (lambda (label) (format labels "%s\\n" label)) (hts_dump_feats_string_list utterance hts_feats_list))
    (mapcar (lambda (phone) (format phones "%s\\t%s\\t%s\\n" (item.name phone)
        (item.feat phone 'R:SylStructure.parent.parent.id)
        (item.feat phone 'R:SylStructure.parent.parent.R:Token.parent.punc)))
      (utt.relation.items utterance 'Segment))
    (fclose labels) (fclose phones)))
"""


@dataclass(frozen=True)
class _Phone:
    """A phone of festival: its name, the id of its word, 0 for a pause, and the punctuation after that word's token."""

    name: str
    word: str
    mark: str


class ParametricTeacher:
    """The voices of `PARAMETRIC_VOICES`, one process of hts_engine per utterance."""

    def speak(self, requests: Sequence[TeacherRequest]) -> Iterator[TeacherSpeech]:
        """Speaks texts, in their order; one without a phone is left out.

        Raises:
            CsmError: festival, hts_engine or the voice is missing, or one of them failed.
        """
        missing = [name for name in ("festival", "hts_engine") if shutil.which(name) is None]
        if missing or not HTS_VOICE.exists():
            raise CsmError("the parametric teacher is missing; apt install festival festvox-us-slt-hts htsengine")
        with tempfile.TemporaryDirectory() as scratch:
            stems = [Path(scratch) / str(index) for index in range(len(requests))]
            texts = (each.text.replace("\\", " ").replace('"', " ") for each in requests)
            calls = [f'(describe "{stem}" "{text}")' for stem, text in zip(stems, texts, strict=True)]
            script = Path(scratch) / "script.scm"
            script.write_text("\n".join([_SCHEME, *calls]), encoding="utf-8")
            _run(["festival", "-b", str(script)])
            for stem, request in zip(stems, requests, strict=True):
                phones = [_Phone(*line.split("\t")) for line in stem.with_suffix(".txt").read_text().splitlines()]
                if any(phone.name in _SYMBOLS for phone in phones):
                    yield _synthesize(stem, request, phones)


class VoiceTeachers:
    """Each voice by its teacher: those of `PARAMETRIC_VOICES` by festival, all others by Kokoro, set up in `tools`."""

    def __init__(self, tools: Path) -> None:
        self.natural = KokoroTeacher(tools)
        self._parametric = ParametricTeacher()

    def speak(self, requests: Sequence[TeacherRequest]) -> Iterator[TeacherSpeech]:
        for voice, group in itertools.groupby(requests, lambda request: request.voice):
            teacher = self._parametric if voice in PARAMETRIC_VOICES else self.natural
            yield from teacher.speak(list(group))


def _synthesize(stem: Path, request: TeacherRequest, phones: Sequence[_Phone]) -> TeacherSpeech:
    import soundfile
    import soxr

    times, sound = stem.with_suffix(".times"), stem.with_suffix(".wav")
    options = [*PARAMETRIC_VOICES[request.voice], "-r", str(request.speed), "-od", str(times), "-ow", str(sound)]
    _run(["hts_engine", "-m", str(HTS_VOICE), *options, str(stem.with_suffix(".lab"))])
    samples, rate = soundfile.read(sound, dtype="float32")
    samples = soxr.resample(samples, rate, RATE)
    ends = [int(line.split()[1]) / _TICKS * RATE / _UNIT for line in times.read_text().splitlines()]
    phonemes, durations = _phoneme_units(phones, ends)
    total = sum(durations) * _UNIT
    return TeacherSpeech(request, np.pad(samples, (0, max(0, total - len(samples))))[:total], phonemes, durations)


def _phoneme_units(phones: Sequence[_Phone], ends: Sequence[float]) -> tuple[str, tuple[int, ...]]:
    """Kokoro's form of phones and their ends in units: a space between words, a mark before it where one is written."""
    symbols, durations, at = [""], [0], 0
    for index, (phone, end) in enumerate(zip(phones, ends, strict=True)):
        units = round(end) - at
        at += units
        if phone.name == "pau":
            if len(symbols) == 1:
                durations[0] += units
            else:
                mark = phones[index - 1].mark
                symbols += [mark if mark in _MARKS else ",", " "]
                durations += [0, units]
            continue
        if index and phones[index - 1].name != "pau" and phone.word != phones[index - 1].word:
            symbols.append(" ")
            durations.append(0)
        symbols.append(_SYMBOLS[phone.name])
        durations.append(units)
    if symbols[-1] == " ":  # the last pause is the pad after all phonemes
        symbols.pop()
        return "".join(symbols[1:]), tuple(durations)
    return "".join(symbols[1:]), (*durations, 0)


def _run(command: Sequence[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    if done.returncode:
        raise CsmError(f"{command[0]} failed ({done.stderr.strip() or f'exit code {done.returncode}'})")
