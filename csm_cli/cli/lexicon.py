"""csm lexicon: what a lexicon makes of a text."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from csm_cli.cli.console import emit, emit_json

lexicon = typer.Typer(name="lexicon", help="Check spellings of names for the model.", no_args_is_help=True)


@lexicon.command()
def check(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="YAML, JSON, CSV or TSV: words and their spellings.")],
    text: Annotated[str | None, typer.Argument(metavar="TEXT", help="A text; - is standard input.")] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="Write out numbers and abbreviations too, as csm say --normalize does.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Validate a lexicon, and show what will be spoken of a text.

    Example:
      csm lexicon check names.csv 'Ask Dr. Nguyen.'
    """
    from csm_cli.generation.chunking import spell
    from csm_cli.generation.normalization import check_normalizer
    from csm_cli.script.lexicon import find_words, read_lexicon
    from csm_cli.script.spoken_text import clean_text
    from csm_cli.types import DEFAULT_LANGUAGE, Conversation

    if normalize:
        check_normalizer(DEFAULT_LANGUAGE)
    entries = read_lexicon(file.expanduser())
    result: dict[str, Any] = {"file": str(file), "entries": len(entries)}
    if text is not None:
        text = clean_text(sys.stdin.read() if text == "-" else text).strip()
        found = find_words(text, entries)
        result |= {
            "text": text,
            "spelled": spell(text, Conversation((), lexicon=entries, normalize=normalize)),
            "replaced": [{"word": text[start:end], "spelling": spelling} for start, end, spelling in found],
        }
    if json:
        emit_json(result)
        return
    if text is None:
        emit(f"{file}: {len(entries)} {'entry' if len(entries) == 1 else 'entries'}")
        return
    emit(f"spoken:   {' '.join(result['spelled'].split())}")
    replaced = [f"{' '.join(each['word'].split())} -> {each['spelling']}" for each in result["replaced"]]
    emit(f"replaced: {', '.join(replaced) or 'none of its words is in the lexicon'}")
