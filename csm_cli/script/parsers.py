"""YAML and JSON text to plain data, with the line and column of every value and every key."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import yaml

from csm_cli.script import schema
from csm_cli.script.files import Location
from csm_cli.script.limits import MAX_DEPTH, MAX_VALUES, MAX_YAML_CHARS
from csm_cli.script.source import COMMA_ENDS_TEXT, INVALID, Keys, Source, quoted


class _ParseEvent(NamedTuple):
    """kind: "scalar" with its value, one of {}[], or "error" with its message.

    comment: what follows a text after " #" in its line. has_escapes: the scalar is in double quotes with backslashes.
    is_bare: it is a field's value that nobody wrote, not even the colon before it.
    """

    kind: str
    value: Any
    location: Location
    comment: str = ""
    has_escapes: bool = False
    is_bare: bool = False


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# YAML 1.1 breaks lines at these, editors do not, or refuses them; as spaces they leave every location as it is seen.
_YAML_LINE_BREAKS = dict.fromkeys(map(ord, "\x85\u2028\u2029\x0b\x0c"), " ")
_NOT_YAML = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NEEDS_QUOTES = 'a text that begins with "{0}" must be in quotes'
_ESCAPES = "a backslash in double quotes begins an escape; use single quotes, or / in a path"
_COMMENT = re.compile(r"[ \t]+#(.*)")
_PATH_FIELDS = tuple((name,) for name in ("voice", "audio", "path", *schema.ALIASES["audio"]))
_TOO_DEEP = f"more than {MAX_DEPTH} levels deep"

_JSON_TOKEN = re.compile(r'"[^"\\]*(?:\\.[^"\\]*)*"|[{}\[\]\n]|[^\s,:{}\[\]"]+')
_JSON_SPACE = re.compile(r"[ \t\r\n]*")
_JSON_TRAILING_COMMA = re.compile(r",\s*([\]}])")
_JSON_PROBLEMS = {  # part of the message of json: the message of a diagnostic
    "Unterminated": "the text has no closing quote",
    "escape": r"write a backslash in JSON as \\",
    "control character": r"write a line break or tab inside a text as \n or \t",
    "property name": "expected the name of a field in double quotes",
    "':' delimiter": 'expected ":" after the name of the field',
    "',' delimiter": 'expected "," or a closing bracket',
    "Extra data": "expected nothing more after the JSON value",
}
# int() refuses thousands of digits; the schema refuses infinity, at the value's location.
_JSON = json.JSONDecoder(parse_int=lambda digits: int(digits) if len(digits) < 300 else math.inf)


class _Unparsable(Exception):
    """The rest of a text cannot be parsed: location, path, message."""


def parse_yaml(text: str, source: Source, expected: str = "turns") -> Any:
    """The data of one YAML document; INVALID and a diagnostic in `source` if it cannot be parsed.

    Scalars stay strings as written, whatever type YAML 1.1 gives them. Anchors, aliases and tags are errors.
    expected: what an empty file lacks.
    """
    if len(text) > MAX_YAML_CHARS:
        message = f"more than {MAX_YAML_CHARS // 1_000_000} MB of YAML; use JSONL instead"
        source.add_error_at((1, 1), (), message)
        return INVALID
    text = text.translate(_YAML_LINE_BREAKS)
    events = _yaml_events(text)
    try:
        first = next(events, None)
        if first is None:
            raise _Unparsable((1, 1), (), f"the file is empty; expected {expected}")
        data = _build(source, events, first, ())
        if extra := next(events, None):
            raise _Unparsable(extra.location, (), extra.value)
    except _Unparsable as problem:
        source.add_error_at(*problem.args)
    except yaml.MarkedYAMLError as error:
        source.add_error_at(*_explain_yaml(error, text))
    except yaml.YAMLError:
        odd = _NOT_YAML.search(text)
        message = "YAML does not allow this character; remove it"
        source.add_error_at(_location(text, odd.start() if odd else 0), (), message)
    else:
        return data
    return INVALID


def parse_json(text: str, source: Source, line: int = 1, path: Keys = ()) -> Any:
    """The data of a JSON value; INVALID and a diagnostic in `source` if it cannot be parsed.

    line: the number of the first line of `text` in its file. path: of the value in the data of `source`.
    """
    try:
        if not text.strip():
            raise _Unparsable((line, 1), path, "the file is empty; expected turns")
        _JSON.decode(text)
        events = _json_events(text, line)
        return _build(source, events, next(events), path)
    except json.JSONDecodeError as error:
        offset, message = _explain_json(error, text)
        row, column = _location(text, offset)
        source.add_error_at((line + row - 1, column), path, message)
    except RecursionError:
        source.add_error_at((line, 1), path, _TOO_DEEP)
    except _Unparsable as problem:
        source.add_error_at(*problem.args)
    return INVALID


def split_json_array(text: str) -> Iterator[tuple[str, int, tuple[Location, str] | None]]:
    """The text of each value of a JSON array, its line, and where and why the rest cannot be parsed.

    Values are parsed one by one, since the locations of all of them would take more memory than the text.
    """
    position, line, counted = text.index("[") + 1, 1, 0
    values = 0
    while True:
        start = _JSON_SPACE.match(text, position).end()  # type: ignore[union-attr]  # it always matches
        line, counted = line + text.count("\n", counted, start), start
        try:
            if text[start : start + 1] == "]" and not values:
                end, after = start, start
            else:
                _, end = _JSON.raw_decode(text, start)
                yield text[start:end], line, None
                values += 1
                after = _JSON_SPACE.match(text, end).end()  # type: ignore[union-attr]
            if text[after : after + 1] == ",":
                position = after + 1
                continue
            if text[after : after + 1] != "]":
                raise json.JSONDecodeError("Expecting ',' delimiter", text, after)
            if text[after + 1 :].strip():
                raise json.JSONDecodeError("Extra data", text, after + 1)
        except json.JSONDecodeError as error:
            offset, message = _explain_json(error, text)
            location = _location(text, offset)
            yield "", location[0], (location, message)
        except RecursionError:
            yield "", line, ((line, 1), _TOO_DEEP)
        return


def _build(source: Source, events: Iterator[_ParseEvent], event: _ParseEvent, path: Keys) -> Any:
    """The value that starts with `event`; the locations of it and of all in it are added to `source`."""
    kind, value, location = event.kind, event.value, event.location
    if kind == "error":
        raise _Unparsable(location, path, value)
    if len(path) > MAX_DEPTH:
        raise _Unparsable(location, path[:3], _TOO_DEEP)
    if len(source.locations) > MAX_VALUES:
        raise _Unparsable(location, path[:1], f"more than {MAX_VALUES} values; split the file into several")
    source.locations[path] = location
    if kind == "[":
        items: list[Any] = []
        while (event := next(events)).kind != "]":
            items.append(_build(source, events, event, (*path, len(items))))
        return items
    if kind == "{":
        fields: dict[str, Any] = {}
        while (event := next(events)).kind != "}":
            location = event.location
            if event.kind != "scalar":
                raise _Unparsable(location, path, "expected the name of a field; put a text that begins so in quotes")
            name = source.text(event.value, path, location)
            after = next(events)
            if after.is_bare:
                source.add_error_at(location, path, f"{quoted(name)} has no value; {COMMA_ENDS_TEXT}")
            elif name in fields:
                source.add_error_at(location, (*path, name), "duplicate field; keep one")
                _build(source, events, after, (*path, name, "again"))
            else:
                source.key_locations[(*path, name)] = location
                fields[name] = _build(source, events, after, (*path, name))
        return fields
    if event.comment:
        source.comments[path] = event.comment
    if event.has_escapes and path[-1:] in _PATH_FIELDS and not value.isprintable():
        source.add_error_at(location, path, _ESCAPES)
        return value
    return source.text(value, path, location) if isinstance(value, str) else value


def _yaml_events(text: str) -> Iterator[_ParseEvent]:
    brackets = {
        yaml.MappingStartEvent: "{",
        yaml.MappingEndEvent: "}",
        yaml.SequenceStartEvent: "[",
        yaml.SequenceEndEvent: "]",
    }
    documents = 0
    lines = re.split("\r\n|[\r\n]", text)  # as YAML counts them
    key_end = None
    event: Any
    for event in yaml.parse(text, Loader=_LOADER):
        location = event.start_mark.line + 1, event.start_mark.column + 1
        before, key_end = key_end, (event.end_mark.line, event.end_mark.column)
        if isinstance(event, yaml.AliasEvent):
            yield _ParseEvent("error", _NEEDS_QUOTES.format("*"), location)
        elif getattr(event, "anchor", None) is not None:
            yield _ParseEvent("error", _NEEDS_QUOTES.format("&"), location)
        elif getattr(event, "tag", None) is not None:
            yield _ParseEvent("error", _NEEDS_QUOTES.format("!"), location)
        elif isinstance(event, yaml.ScalarEvent):
            start: Any = event.start_mark
            end: Any = event.end_mark
            comment = _COMMENT.match(lines[end.line], end.column) if end.line < len(lines) else None
            yield _ParseEvent(
                "scalar",
                event.value,
                location,
                comment=comment[1] if comment and not event.style else "",
                has_escapes=event.style == '"' and "\\" in lines[start.line][start.column :],
                is_bare=not event.style and not event.value and before == (start.line, start.column),
            )
        elif type(event) in brackets:
            yield _ParseEvent(brackets[type(event)], None, location)
        elif isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                yield _ParseEvent("error", 'expected one document; remove the "---" here', location)


def _json_events(text: str, line: int) -> Iterator[_ParseEvent]:
    """The events of valid JSON."""
    line_start = 0
    for match in _JSON_TOKEN.finditer(text):
        token, location = match[0], (line, match.start() - line_start + 1)
        if token == "\n":
            line, line_start = line + 1, match.end()
        elif token in "{}[]":
            yield _ParseEvent(token, None, location)
        else:
            yield _ParseEvent("scalar", _JSON.raw_decode(token)[0], location)


def _explain_yaml(error: yaml.MarkedYAMLError, text: str) -> tuple[Location, Keys, str]:
    """Location, path and message for a syntax error, for people who write dialogue rather than YAML."""
    open_quote = "quoted scalar" in (error.context or "")
    mark = error.context_mark if open_quote else error.problem_mark or error.context_mark
    location = (mark.line + 1, mark.column + 1) if mark else (1, 1)
    lines = text.split("\n")
    line = lines[min(location[0], len(lines)) - 1]
    value = re.sub(r"^(\s*-\s+)*\s*([^\s:\[\"']+:\s+)?", "", line)
    if open_quote and re.search("escape|hexdecimal", error.problem or ""):
        mark = error.problem_mark
        location = (mark.line + 1, mark.column + 1) if mark else location
        message = _ESCAPES
    elif open_quote:
        message = "the closing quote is missing"
    elif "\t" in line[: len(line) - len(line.lstrip())]:
        message = "YAML cannot be indented with tabs; use spaces"
    elif value.startswith("[") and _is_text_in_brackets(value):
        message = _NEEDS_QUOTES.format("[")
    elif value[:1] in ('"', "'"):
        message = "unexpected text after the closing quote"
    elif value[:1] in tuple("{}]@`%*&!|>"):
        message = _NEEDS_QUOTES.format(value[0])
    elif "mapping values" in str(error.problem) and line.count(": ") + line.endswith(":") > 1:
        message = 'a text with ": " in it must be in quotes'
    else:
        message = "not valid YAML; check the indentation and quotes of this line and the one above"
    return location, (), message


def _is_text_in_brackets(value: str) -> bool:
    """Whether what begins with "[" is a text such as `[laughs] Yes.`, and not the beginning of a list."""
    inside, _, after = value[1:].partition("]")
    return bool(inside.translate(_SEPARATORS).strip()) or after.lstrip()[:1] not in ("", ",", "]", "}")


_SEPARATORS = dict.fromkeys(map(ord, ",}"), " ")


def _explain_json(error: json.JSONDecodeError, text: str) -> tuple[int, str]:
    """Offset and message for a syntax error."""
    offset = error.pos
    comma = offset if text[offset : offset + 1] == "," else len(text[:offset].rstrip()) - 1
    if trailing := _JSON_TRAILING_COMMA.match(text, max(comma, 0)):
        return comma, f'remove the "," before "{trailing[1]}"'
    if not text[offset:].strip():
        return offset, "the JSON ends too soon"
    messages = (message for part, message in _JSON_PROBLEMS.items() if part in error.msg)
    return offset, next(messages, "not valid JSON; put texts in double quotes")


def _location(text: str, offset: int) -> Location:
    return text.count("\n", 0, offset) + 1, offset - text.rfind("\n", 0, offset)
