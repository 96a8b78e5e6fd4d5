"""JSON and JSONL into a located tree; numbers, true and false keep their types."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from typing import Any

from csm_cli.script.source import INVALID, MAX_DEPTH, Keys, Location, Source

_SPACE = re.compile(r"[ \t\r\n]*")


class _Refused(Exception):
    """JSON beyond which nothing can be read: offset, path, message."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_LEAF = json.JSONDecoder(parse_constant=_no_constant)


def parse_json(text: str, source: Source, line: int = 1, path: Keys = ()) -> Any:
    """The value `text` holds, its places noted in `source` below `path`; REFUSED and a diagnostic where it is not JSON.

    line: the number of the first line of `text` in its file.
    """
    reader = _Reader(text, source, line)
    try:
        if reader.skip(0) == len(text):
            raise _Refused(0, path, "the file is empty; expected turns")
        value = reader.value(reader.skip(0), path)
        if reader.skip(reader.at) < len(text):
            raise _Refused(reader.skip(reader.at), path, "expected nothing more after the closing bracket")
    except _Refused as refused:
        offset, where, message = refused.args
        source.complain_at(reader.place(offset), where, message)
        return INVALID
    return value


class _Reader:
    def __init__(self, text: str, source: Source, line: int) -> None:
        self.text = text
        self.source = source
        self.line = line
        self.at = 0
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def place(self, offset: int) -> Location:
        row = bisect_right(self.starts, offset) - 1
        return self.line + row, offset - self.starts[row] + 1

    def skip(self, offset: int) -> int:
        match = _SPACE.match(self.text, offset)
        return match.end() if match else offset

    def value(self, start: int, path: Keys) -> Any:
        if len(path) > MAX_DEPTH:
            raise _Refused(start, path[:3], f"more than {MAX_DEPTH} levels deep")
        if full := self.source.full:
            raise _Refused(start, path[:1], full)
        self.source.values[path] = self.place(start)
        opening = self.text[start : start + 1]
        if opening == "{":
            return self.mapping(start, path)
        if opening == "[":
            return self.sequence(start, path)
        value = self.leaf(start, path)
        return self.source.text(value, path, self.place(start)) if isinstance(value, str) else value

    def leaf(self, start: int, path: Keys) -> Any:
        try:
            value, self.at = _LEAF.raw_decode(self.text, start)
        except json.JSONDecodeError as error:
            raise _Refused(error.pos, path, _explain(error, self.text[start : start + 1])) from error
        except ValueError as error:
            raise _Refused(start, path, "expected a finite number of sensible length") from error
        return value

    def sequence(self, start: int, path: Keys) -> list[Any]:
        items: list[Any] = []
        at = self.skip(start + 1)
        while self.text[at : at + 1] != "]":
            items.append(self.value(at, (*path, len(items))))
            at = self.next("]", path)
        self.at = at + 1
        return items

    def mapping(self, start: int, path: Keys) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        at = self.skip(start + 1)
        while self.text[at : at + 1] != "}":
            key = self.key(at, path)
            inner: Keys = (*path, key)
            if key in fields:
                self.source.complain_at(self.place(at), inner, "given twice; keep one")
                inner = (*inner, "again")
            else:
                self.source.keys[inner] = self.place(at)
            value = self.value(self.skip(self.at + 1), inner)
            fields.setdefault(key, value)
            at = self.next("}", path)
        self.at = at + 1
        return fields

    def key(self, start: int, path: Keys) -> str:
        if self.text[start : start + 1] != '"':
            raise _Refused(start, path, "expected the name of a field in double quotes")
        key = self.source.text(self.leaf(start, path), path, self.place(start))
        self.at = self.skip(self.at)
        if self.text[self.at : self.at + 1] != ":":
            raise _Refused(self.at, (*path, key), 'expected ":" after the name of the field')
        return key

    def next(self, closing: str, path: Keys) -> int:
        """Steps over a comma, to the next item or the closing bracket."""
        at = self.skip(self.at)
        if self.text[at : at + 1] == closing:
            return at
        if self.text[at : at + 1] != ",":
            raise _Refused(at, path, f'expected "," or "{closing}"')
        after = self.skip(at + 1)
        if self.text[after : after + 1] == closing:
            raise _Refused(at, path, f'remove the "," before "{closing}"')
        return after


def _explain(error: json.JSONDecodeError, opening: str) -> str:
    if opening == "":
        return "the JSON ends too soon"
    if "Unterminated" in error.msg:
        return "the text has no closing quote"
    if "escape" in error.msg:
        return r"a backslash in JSON is written \\"
    if "control character" in error.msg:
        return r"a line break or tab inside a text is written \n or \t"
    return "not valid JSON; a text stands in double quotes"
