"""A stranger who listens: pocketsphinx with its own English model, choosing among sentences."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import numpy as np

from csm_cli.recipe.corpus import RATE
from csm_cli.recipe.sounds import Samples, trim_silence

CHOICES = 20
MISSING = "pocketsphinx is not installed; pip install 'csm-cli[bench]'"

_ITS_RATE = 16_000
_MARGIN = 0.3  # seconds of near silence around speech: it has to hear a sentence end
_NOISE = 1e-3  # its model has never heard digital silence
_BEAMS = {"beam": 1e-80, "wbeam": 1e-60, "pbeam": 1e-80}  # wide: the grammar is small, the voices are strange


def can_recognize() -> bool:
    return find_spec("pocketsphinx") is not None


class PhoneRecognizer:
    """Chooses among 20 sentences by a grammar of just these; every choice is made afresh.

    texts: those whose words it all knows are asked about, in groups of 20 in their order.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        from pocketsphinx import Decoder

        self._decoder = Decoder(lm=None, cmn="batch", bestpath=False, loglevel="FATAL", **_BEAMS)
        known = [text for text in texts if self._knows(text)]
        self.groups = [known[start : start + CHOICES] for start in range(0, len(known) - CHOICES + 1, CHOICES)]

    def hits(self, takes: Mapping[str, Samples]) -> list[bool]:
        """Whether each take that is asked about was taken for its own text."""
        found: list[bool] = []
        for group in self.groups:
            asked = [text for text in group if text in takes]
            if asked:
                self._listen_for(group)
                found += [self._hear(takes[text]) == _spelled(text) for text in asked]
        return found

    def _knows(self, text: str) -> bool:
        words = _spelled(text).split()
        return not re.search(r"\d", text) and all(self._decoder.lookup_word(word) for word in words)

    def _listen_for(self, group: Sequence[str]) -> None:
        choices = " | ".join(map(_spelled, group))
        self._decoder.add_jsgf_string("choices", f"#JSGF V1.0; grammar choices; public <choice> = {choices};")
        self._decoder.activate_search("choices")

    def _hear(self, take: Samples) -> str | None:
        self._decoder.start_utt()
        self._decoder.process_raw(_pcm(take), full_utt=True)
        self._decoder.end_utt()
        heard = self._decoder.hyp()
        return heard.hypstr if heard else None


def _spelled(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def _pcm(take: Samples) -> bytes:
    import soxr

    samples = np.pad(soxr.resample(trim_silence(take), RATE, _ITS_RATE), round(_MARGIN * _ITS_RATE))
    noisy = samples + _NOISE * np.random.default_rng(0).standard_normal(len(samples))
    return bytes((np.clip(noisy, -1, 1) * 32767).astype(np.int16).tobytes())
