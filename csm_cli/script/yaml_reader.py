"""YAML into a located tree: plain scalars stay the strings the user wrote, whatever YAML 1.1 would make of them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from csm_cli.script.source import MAX_DEPTH, Keys, Location, Source

MAX_YAML_CHARS = 4_000_000
# Line breaks to YAML 1.1, but not to an editor: as spaces they leave every place where the user sees it.
_ODD_BREAKS = dict.fromkeys(map(ord, "\x85\u2028\u2029"), " ")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_QUOTE = 'a text that begins with "{0}" has to stand in quotes'


class _Refused(Exception):
    """YAML beyond which nothing can be read: place, path, message."""


def parse_yaml(text: str, source: Source, expected: str = "turns") -> None:
    """Fills `source` from YAML text; what is wrong becomes diagnostics. expected: what an empty file lacks."""
    if len(text) > MAX_YAML_CHARS:
        source.complain_at((1, 1), (), f"more than {MAX_YAML_CHARS // 1_000_000} MB of YAML; write so much as JSONL")
        return
    text = text.translate(_ODD_BREAKS)
    try:
        if not _Builder(text, source).document():
            source.complain_at((1, 1), (), f"the file is empty; expected {expected}")
    except _Refused as refused:
        source.complain_at(*refused.args)
    except yaml.MarkedYAMLError as error:
        open_quote = error.context and "quoted scalar" in error.context
        mark = error.context_mark if open_quote else error.problem_mark or error.context_mark
        place = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        source.complain_at(place, (), "a quote is left open" if open_quote else _explain(error, text, place))
    except yaml.YAMLError:
        place = _odd_character(text)
        source.complain_at(place, (), "a character here cannot stand in YAML; remove it")


def _odd_character(text: str) -> Location:
    odd = re.search("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", text)
    before = text[: odd.start()] if odd else ""
    return before.count("\n") + 1, len(before) - before.rfind("\n")


def _explain(error: yaml.MarkedYAMLError, text: str, place: Location) -> str:
    """The parser's diagnostic in the words of somebody who writes dialogue."""
    lines = text.split("\n")
    line = lines[min(place[0], len(lines)) - 1]
    indent = line[: len(line) - len(line.lstrip())]
    if "\t" in indent:
        return "a tab cannot indent YAML; use spaces"
    value = re.sub(r"^(\s*-\s+)*\s*([^\s:\[\"']+:\s+)?", "", line)
    if re.match(r"\[[^\]]*\]?\s*[^\s,\]}]", value):
        return _QUOTE.format("[")
    if value[:1] in tuple("{}]@`%*&!|>\"'"):
        return _QUOTE.format(value[0]) if value[0] not in "\"'" else "nothing may follow the closing quote"
    if "mapping values" in str(error.problem) and line.count(": ") + line.endswith(":") > 1:
        return 'a text with ": " in it has to stand in quotes'
    return "not valid YAML here; look at the indentation and quotes of this line and the one above"


class _Builder:
    """Builds the tree from the parser's events. Anchors and tags are refused: they are text that wants quotes."""

    def __init__(self, text: str, source: Source) -> None:
        self.source = source
        self.events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)

    def document(self) -> bool:
        """Whether there is one."""
        next(self.events)
        if isinstance(next(self.events), yaml.StreamEndEvent):
            return False
        self.source.data = self.node(next(self.events), ())
        next(self.events)
        extra = next(self.events)
        if not isinstance(extra, yaml.StreamEndEvent):
            raise _Refused(_place(extra), (), 'expected one document; remove the "---" here')
        return True

    def node(self, event: Any, path: Keys) -> Any:
        place = _place(event)
        mark = _mark(event)
        if mark:
            raise _Refused(place, path, _QUOTE.format(mark))
        if len(path) > MAX_DEPTH:
            raise _Refused(place, path[:3], f"more than {MAX_DEPTH} levels deep")
        if full := self.source.full:
            raise _Refused(place, path[:1], full)
        self.source.values[path] = place
        if isinstance(event, yaml.MappingStartEvent):
            return self.mapping(path)
        if isinstance(event, yaml.SequenceStartEvent):
            return self.sequence(path)
        return self.source.text(event.value, path, place)

    def sequence(self, path: Keys) -> list[Any]:
        items: list[Any] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            items.append(self.node(event, (*path, len(items))))
        return items

    def mapping(self, path: Keys) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        while not isinstance(event := next(self.events), yaml.MappingEndEvent):
            place = _place(event)
            if not isinstance(event, yaml.ScalarEvent) or _mark(event):
                raise _Refused(
                    place, path, "expected the name of a field; a text that begins so has to stand in quotes"
                )
            key = self.source.text(event.value, path, place)
            if key in fields:
                self.source.complain_at(place, (*path, key), "given twice; keep one")
                self.node(next(self.events), (*path, key, "again"))
                continue
            self.source.keys[(*path, key)] = place
            fields[key] = self.node(next(self.events), (*path, key))
        return fields


def _place(event: Any) -> Location:
    return event.start_mark.line + 1, event.start_mark.column + 1


def _mark(event: Any) -> str:
    """The character that makes `event` an alias, an anchor or a tag; empty for what is none of them."""
    if isinstance(event, yaml.AliasEvent):
        return "*"
    if event.anchor is not None:
        return "&"
    return "!" if event.tag is not None else ""
