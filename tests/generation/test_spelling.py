"""What the model reads of a text: sentences by the rules of its language, and numbers written out on request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.run import Result

from csm_cli.errors import UsageError
from csm_cli.generation.chunking import spell, split_text
from csm_cli.generation.normalization import check_normalizer, normalize_text
from csm_cli.types import Conversation

Csm = Callable[..., Result]


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "Ms. Johnson has a Ph.D. in physics."),
        ("en", "It takes approx. 5 minutes, est. 10 at most."),
        ("en", "We met at 5 p.m. today, in Fig. 3 of vol. 2."),
        ("de", "Am 3. Mai kam Dr. Weiß zu uns."),
    ],
)
def test_no_sentence_ends_after_an_abbreviation(language: str, text: str) -> None:
    assert split_text(f"{text} {text}", len(text), language) == (text, text)


def test_sentences_end_where_they_do() -> None:
    assert split_text("Who is it? 5 men came. No one left.", 14) == ("Who is it?", "5 men came.", "No one left.")


@pytest.mark.parametrize(
    ("text", "spoken"),
    [
        ("It is 5 km.", "It is five kilometers."),
        ('He said "10 %" (of 20).', 'He said "ten percent" (of twenty).'),
        ("Dr. Smith won.", "doctor Smith won."),
        ("Nothing here, e.g. this.", "Nothing here, e.g. this."),
        ("On May 3, 2024.", "On May three, twenty twenty four."),
    ],
)
def test_numbers_and_abbreviations_are_written_out(text: str, spoken: str) -> None:
    pytest.importorskip("wetext")
    assert normalize_text(text) == spoken
    assert spell(text, Conversation((), normalize=True)) == spoken
    assert spell(text, Conversation(())) == text


def test_the_lexicon_comes_first() -> None:
    pytest.importorskip("wetext")
    assert spell("SQL 2", Conversation((), lexicon={"sql": "sequel"}, normalize=True)) == "sequel two"


def test_a_language_without_rules_is_refused() -> None:
    with pytest.raises(UsageError):
        check_normalizer("de")


def test_the_dry_run_shows_what_is_spoken(tmp_path: Path, csm: Csm) -> None:
    pytest.importorskip("wetext")
    (tmp_path / "s.yaml").write_text("turns:\n- ana: It is 5 km.\n- ana: Yes.\n")
    result = csm("converse", tmp_path / "s.yaml", "-n", "--normalize")
    assert result.code == 0 and result.out.count("five kilometers") == 1
    record = csm("converse", tmp_path / "s.yaml", "-n", "--normalize", "--json").json
    assert [turn.get("spelled") for turn in record["turns"]] == ["It is five kilometers.", None]
    assert csm("converse", tmp_path / "s.yaml", "-n", "--normalize", "--language", "de").code == 2
