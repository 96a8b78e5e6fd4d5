"""Numbers, dates, money and abbreviations as words, by the rules of WeTextProcessing (extra `normalize`)."""

from __future__ import annotations

import logging
import re
from functools import cache
from importlib.util import find_spec
from typing import Any

from csm_cli.errors import UsageError

_LOG = logging.getLogger(__name__)

NORMALIZED_LANGUAGES = ("en",)  # those whose rules come with wetext and were tried
# Only sentences with these are changed, since the rules also touch punctuation and case.
_WRITTEN = re.compile(
    r"\d|[$€£¥%&]|\b(?:Mrs?|Ms|Dr|Prof|St|Ave|Rd|Blvd|Jr|Sr|vs|etc|approx|No|Inc|Ltd|Co|Dept|Gen|Sgt|Capt)\."
)
_PIECES = re.compile(r"(\s*[\"“”()\[\]{}<>\\\n—–]\s*)")  # quotes and brackets, which the rules cannot read  # noqa: RUF001


def check_normalizer(language: str) -> None:
    """Raises UsageError where the rules are not installed, or there are none for the language."""
    if find_spec("wetext") is None:
        raise UsageError("--normalize needs its rules; pip install 'csm-cli[normalize]'")
    if language.split("-")[0] not in NORMALIZED_LANGUAGES:
        raise UsageError(
            f"--normalize knows {', '.join(NORMALIZED_LANGUAGES)}, not {language!r}; leave one of them out"
        )


def normalize_text(text: str) -> str:
    """`text` with numbers and abbreviations written out; quotes, brackets and all else as they are.

    Raises:
        UsageError: as `check_normalizer`.
    """
    if not _WRITTEN.search(text):
        return text
    check_normalizer("en")
    return "".join(
        _normalize_piece(piece) if index % 2 == 0 and _WRITTEN.search(piece) else piece
        for index, piece in enumerate(_PIECES.split(text))
    )


@cache
def _normalize_piece(piece: str) -> str:
    try:
        spoken = str(_normalizer().normalize(piece)).strip()
    except Exception as error:  # whatever the rules raise for a text that they cannot read
        _LOG.warning("--normalize left %.40r as it is (%s)", piece, type(error).__name__)
        return piece
    lead, trail = piece[: len(piece) - len(piece.lstrip())], piece[len(piece.rstrip()) :]
    end = piece.rstrip()[-1:]
    if spoken and end in ".!?" and spoken[-1] not in ".!?":
        spoken += end  # the rules take the dot of "p.m." with it, at the end of a sentence too
    return f"{lead}{spoken}{trail}" if spoken else piece


@cache
def _normalizer() -> Any:
    from wetext import Normalizer

    return Normalizer(lang="en", operator="tn")
