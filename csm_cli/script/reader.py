"""Files and plain data to conversations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from csm_cli.errors import Complaint, ScriptInvalid
from csm_cli.script import schema
from csm_cli.script.cast import Cast
from csm_cli.script.drafts import spelled
from csm_cli.script.files import Files
from csm_cli.script.json_text import numbered_lines, parse_json
from csm_cli.script.resolve import Setting, resolve_line, resolve_script, resolve_setting
from csm_cli.script.source import REFUSED, STDIN, Source, read_text
from csm_cli.script.table import Table, parse_plain, plain_lines, refused
from csm_cli.script.validate import read
from csm_cli.script.yaml_text import parse_yaml
from csm_cli.types import Conversation

HEADLESS = Setting(Cast(known=False))  # the first line, perhaps a header, could not be parsed
_HEAD = {"csm", "title", "speakers", "defaults"}
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_YAML = (".yaml", ".yml")
_BODY = {"turns", "messages", "text", "input"}


def read_script(path: Path | str) -> Conversation:
    """A dialogue from YAML, JSON or JSONL; `-` is standard input. Other suffixes are told apart by what is in the file.

    Raises:
        ScriptInvalid: with every complaint about the script and the files it names.
    """
    return _script(path, read_text(path))


def _script(path: Path | str, text: str) -> Conversation:
    source = _source(path)
    form, base = _form(path, text), Setting()
    if form == "yaml":
        parse_yaml(text, source)
    elif form == "json":
        source.data = parse_json(text, source)
    else:
        base = _parse_lines(text, source)
    conversation = resolve_script(source, _name(path), base) if source.data is not REFUSED else None
    return _finished(source, conversation)


def script_from(data: Mapping[str, Any], base: Path = Path(), name: str = "<data>") -> Conversation:
    """A dialogue from plain data; paths in it are relative to `base`.

    Raises:
        ScriptInvalid: as `read_script`, without lines and columns.
    """
    source = Source(name, Files(base), data)
    return _finished(source, resolve_script(source, "", Setting()))


def read_manifest(path: Path | str) -> list[Conversation]:
    """The lines of a manifest, each a conversation with an id of its own; `-` is standard input.

    `.csv` and `.tsv` have a header and one item a row, `.txt` one text a line, and so has standard input that does not
    begin with a brace; all else is JSONL. A line without an id gets its number in the file, as in `0001`.

    Raises:
        ScriptInvalid: with every complaint about every line.
    """
    if Path(path).suffix.lower() in _YAML:
        raise ScriptInvalid([Complaint(str(path), 0, 0, "", "is YAML, which is a script; speak it with csm converse")])
    return _manifest(path, read_text(path))


def _manifest(path: Path | str, text: str) -> list[Conversation]:
    complaints: list[Complaint] = []
    owners: dict[str, int] = {}
    items: list[Conversation] = []
    for source, number, item in _items(path, text):
        if item is not None and owners.setdefault(item.id, number) != number:
            source.complain((spelled(source.data, "id"),), f'"{item.id}" is the id of line {owners[item.id]} too')
        complaints += source.complaints
        items += [item] if item else []
    if not owners and not complaints:
        complaints.append(Complaint(_source(path).file, 1, 1, "", "there are no lines to speak"))
    if complaints:
        raise ScriptInvalid(complaints)
    return items


def read_lines(path: Path | str) -> Iterator[tuple[int, Conversation | ScriptInvalid]]:
    """The lines of a JSONL manifest with their numbers, each a conversation or what is wrong with it.

    Raises:
        ScriptInvalid: the file cannot be read.
    """
    for source, number, item in _json_items(path, read_text(path)):
        if source.complaints:
            yield number, ScriptInvalid(source.complaints)
        elif item is not None:
            yield number, item


def read_either(path: Path | str) -> list[Conversation]:
    """A script or a manifest, whichever the file is; the complaints are of the form with fewer of them.

    Raises:
        ScriptInvalid: it is neither.
    """
    text, suffix = read_text(path), Path(path).suffix.lower()  # once: standard input is gone when it has been read
    if suffix in _DELIMITERS:
        return _manifest(path, text)
    try:
        return [_script(path, text)]
    except ScriptInvalid as error:
        as_script = error
    if suffix != ".txt" and _form(path, text) != "jsonl":
        raise as_script
    try:
        return _manifest(path, text)
    except ScriptInvalid as as_manifest:
        fewer = min(as_manifest, as_script, key=lambda invalid: len(invalid.complaints))
        raise fewer from None


_Items = Iterator[tuple[Source, int, Conversation | None]]


def _items(path: Path | str, text: str) -> _Items:
    suffix = Path(path).suffix.lower()
    if suffix in _DELIMITERS:
        return _table_items(path, Table(text, _DELIMITERS[suffix]))
    plain = suffix == ".txt" or (str(path) == "-" and not text.lstrip().startswith(("{", "[", "#")))
    return _plain_items(path, text) if plain else _json_items(path, text)


def _plain_items(path: Path | str, text: str) -> _Items:
    for number, line in plain_lines(text):
        source = _source(path)
        parse_plain(line, source, number)
        yield source, number, resolve_line(source, Setting(), f"{number:04d}")


def _table_items(path: Path | str, table: Table) -> _Items:
    files = _source(path).files
    for index, (number, cells) in enumerate(table.rows()):
        source = Source(_source(path).file, files)
        if isinstance(cells, str):
            refused(source, number, cells)
        elif index == 0:
            table.head(cells, source, number)
        else:
            table.item(cells, source, number)
        readable = source.data is not REFUSED
        yield source, number, resolve_line(source, Setting(), f"{number:04d}") if readable else None
        if index == 0 and source.complaints:
            return


def _json_items(path: Path | str, text: str) -> _Items:
    files = _source(path).files
    setting = Setting()
    for index, (number, line) in enumerate(numbered_lines(text)):
        source = Source(_source(path).file, files)
        source.data = parse_json(line, source, number)
        if index == 0 and _is_header(source.data):
            header = read(schema.HeaderOutline, source, source.data, ())
            setting = resolve_setting(source, header, setting) if header else setting
            yield source, number, None
        elif source.data is REFUSED:
            setting = setting if index else HEADLESS
            yield source, number, None
        else:
            yield source, number, resolve_line(source, setting, f"{number:04d}")


def _source(path: Path | str) -> Source:
    stdin = str(path) == "-"
    return Source(STDIN if stdin else str(path), Files(Path() if stdin else Path(path).parent))


def _name(path: Path | str) -> str:
    return "" if str(path) == "-" else Path(path).stem


def _form(path: Path | str, text: str) -> str:
    suffix = Path(path).suffix.lower()
    known = {**dict.fromkeys(_YAML, "yaml"), ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
    if suffix in known:
        return known[suffix]
    if not text.lstrip().startswith("{"):
        return "yaml"
    return "jsonl" if re.match(r"\s*\{.*\}[ \t\r]*(\n|$)", text) else "json"


def _is_header(data: object) -> bool:
    return isinstance(data, dict) and bool(_HEAD & data.keys()) and not _BODY & data.keys()


def _parse_lines(text: str, source: Source) -> Setting:
    """A header, then one turn a line; or a whole script on the only line. Returns what the script stands on."""
    lines = numbered_lines(text)
    source.values[()] = (1, 1)
    if not lines:
        source.complain((), "the file is empty; expected turns")
        return Setting()
    number, line = lines[0]
    first = parse_json(line, Source(source.file, source.files), number)
    whole = len(lines) == 1 and isinstance(first, dict) and ("turns" in first or "messages" in first)
    if whole or _is_header(first):
        source.data = parse_json(line, source, number)
        lines = lines[1:]
    else:
        source.data = {}
    if not whole and source.data is not REFUSED:
        rows = [parse_json(line, source, number, ("turns", at)) for at, (number, line) in enumerate(lines)]
        source.data = {**source.data, "turns": rows}
    return HEADLESS if first is REFUSED else Setting()


def _finished(source: Source, conversation: Conversation | None) -> Conversation:
    if conversation is None or source.complaints:
        raise ScriptInvalid(source.complaints)
    return conversation
