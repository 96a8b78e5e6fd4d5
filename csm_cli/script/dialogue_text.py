"""Dialogues in plain text as turns: plays, Markdown, XML-like elements, and the tags of Dia, VibeVoice and Higgs Audio.

Every line is spoken by somebody, or it is left out for a reason, or the file is refused at that line.
"""

from __future__ import annotations

import html
import logging
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from csm_cli.script import schema
from csm_cli.script.imported import MAX_SHOWN, ImportedTurn, LeftOut, invalid_line, list_left_out

_LOG = logging.getLogger(__name__)

TAGS = {
    "dia": re.compile(r"\[(S\d{1,3})\]"),
    "higgs": re.compile(r"\[(SPEAKER_?\d{1,3})\](?!:)", re.IGNORECASE),
}
TEXT_EXAMPLES = {
    "dia": "[S1] Hello.",
    "higgs": "[SPEAKER0] Hello.",
    "vibevoice": "Speaker 1: Hello.",
    "text": "ANA: Hello.",
}

# Lines have single spaces only, and a label is looked for in their first characters: no line takes long.
_LIST_MARK = re.compile(r"^(?:[-*+•>](?: |$)|\d{1,4}[.)] )+")
_CLOCK = re.compile(r"^[\[(]?\d{1,2}:\d{2}(?::\d{2})?(?:[.,]\d{1,3})?[\])]?(?: ?[-–])? ?(?=[^\d ])")  # noqa: RUF001
_NAME = r"(\w[^:：<>\[\]()*|\"“”!?;,{}=/\\]{0,40}?)"  # noqa: RUF001
_DIRECTION = r"(?: ?[\[(][^\[\]()]{0,80}[\])])?"
_BOLD = re.compile(rf"^(\*{{1,3}}|_{{1,3}}){_NAME}({_DIRECTION}) ?(?:[:：]\1|\1{_DIRECTION} ?[:：])(?: |$)")  # noqa: RUF001
_COLON = re.compile(rf"^{_NAME}({_DIRECTION}{_DIRECTION}) ?(?::(?: |$)|： ?)")  # noqa: RUF001
_BRACKETS = re.compile(r"^(?!\[pause \d)[\[(]([^\[\]():]{1,40})[\])]( ?:)? ?")
_HEADING = re.compile(r"^#{1,6} ")
_ALONE = re.compile(r"^([^\W\d][^:：.!?,;\"“”()\[\]]{0,40}?) ?(\([^()]{1,40}\))?$")  # noqa: RUF001
_SEPARATOR = re.compile(r"^(?:[-*_=~] ?){3,}$|^`{3}")
_ASIDE = re.compile(r"^(?!\[pause \d)[\[(*_][^\[\]()]*[\])*_]$|^<!--[^>]*-->$|^(?:INT|EXT|EST|I/E)[./ ]")  # and scenes
_EMPHASIS = re.compile(r"(?<![^\s\"'(\[])(\*{1,3}|_{1,3}|`)(?=\S)([^*_`]{1,400})(?<=\S)\1(?![\w*_])")
_ATTRIBUTE = r"[ \t]+[\w:-]{1,40}=(?:\"[^\"<>]{0,80}\"|'[^'<>]{0,80}')"
_ELEMENT = re.compile(rf"<(/?)([A-Za-z_][\w.-]{{0,60}})((?:{_ATTRIBUTE})*)[ \t]*(/?)>")
_PROLOG = re.compile(r"\s*<\?[^<>]*\?>")
_MARKUP = frozenset("b i u em strong p br span emphasis prosody break speak dialogue script conversation".split())  # noqa: SIM905
_ELEMENT_NAME = re.compile(r"[ \t](?:name|speaker|id|voice|who)=[\"']([^\"']+)[\"']", re.IGNORECASE)
_NUMBERED = re.compile(r"(?:speaker|host|person|guest|voice|character|spk|narrator)[ _-]?\d{0,4}", re.IGNORECASE)
_FIELDS = schema.TURN_FIELDS | schema.ScriptOutline.model_fields.keys()
_MAX_NAME_WORDS = 5
_MAX_LABEL_CHARS = 300  # of a line, in which a label is looked for


@dataclass
class DialogueText:
    """The turns of a text, and the lines that nobody speaks."""

    turns: list[ImportedTurn]
    left_out: list[LeftOut] = field(default_factory=list)


@dataclass(frozen=True)
class _Label:
    """A speaker's name at the start of a line, and the text after it. aside: a direction between them.

    kind: colon, bold, brackets, or alone on its line; what makes it a speaker depends on it.
    """

    name: str
    text: str
    kind: str
    aside: str = ""


def detect_dialogue(text: str) -> str | None:
    """dia, higgs or text if turns of speakers can be told in a text; None if not.

    Names before a colon count if the first line has one and two turns begin so, or most lines do.
    """
    start = text.lstrip()
    if tagged := next((name for name, tag in TAGS.items() if tag.match(start)), None):
        return tagged
    if _elements(text):
        return "text"
    lines = [line for _, line in _content_lines(text)]
    names = _speakers(lines)
    labels = [label for line in lines if (label := _label(line)) and _key(label) in names]
    if len(labels) < 2 or any(_key(label) in _FIELDS for label in labels):
        return None
    lines = [line for line in lines if not any(mark.match(line) for mark in (_SEPARATOR, _ASIDE, _HEADING))]
    first = _label(lines[0]) if lines else labels[0]
    labelled = sum(2 if label.kind == "alone" else 1 for label in labels)  # the words of these are on the next line
    return "text" if (first and _key(first) in names) or 2 * labelled > len(lines) else None


def read_dialogue(path: str, text: str, text_format: str) -> list[ImportedTurn]:
    """The turns of a text. text_format: dia, higgs, vibevoice, or text for all other labels.

    Raises:
        ScriptInvalid: nobody speaks the first words, or a turn has no text.
    """
    if text_format in TAGS:
        result = DialogueText(_read_tagged(path, text, text_format))
    elif _elements(text):
        result = _read_elements(path, text)
    else:
        result = _read_lines(path, text, TEXT_EXAMPLES[text_format])
    if not result.turns:
        raise invalid_line(path, 1, f"expected a turn such as {TEXT_EXAMPLES[text_format]!r}, got no words")
    for turn in result.turns:
        if not turn.text:
            raise invalid_line(path, turn.line, f"expected text after {turn.speaker}, got nothing")
    if result.left_out:
        _LOG.warning("%s: not spoken: %s", path, list_left_out(result.left_out))
    return result.turns


def _read_tagged(path: str, text: str, text_format: str) -> list[ImportedTurn]:
    """The turns of a text in which a tag, on whichever place of a line, starts each turn."""
    tags = list(TAGS[text_format].finditer(text))
    if not tags or text[: tags[0].start()].strip():
        got = text.strip().split("\n", 1)[0][:40]
        raise invalid_line(path, 1, f"expected a turn such as {TEXT_EXAMPLES[text_format]!r}, got {got!r}")
    turns = []
    line, counted = 1, 0  # lines are counted on from the tag before
    for tag, end in zip(tags, [*(tag.start() for tag in tags[1:]), len(text)], strict=True):
        line, counted = line + text.count("\n", counted, tag.start()), tag.start()
        turns.append(ImportedTurn(line, tag[1], " ".join(text[tag.end() : end].split())))
    if text_format == "dia" and not turns[-1].text:
        turns.pop()  # Dia recommends a last tag without text
    return turns


def _elements(text: str) -> bool:
    """Whether a text begins with an element, such as <Person1>, that is closed."""
    prolog = _PROLOG.match(text)
    start = text[prolog.end() if prolog else 0 :].lstrip()
    opened = _ELEMENT.match(start)
    return opened is not None and not opened[1] and f"</{opened[2]}>" in start


def _read_elements(path: str, text: str) -> DialogueText:
    """Elements named after a speaker, or with an attribute that names one; mark-up belongs to what is around it."""
    result = DialogueText([])
    if prolog := _PROLOG.match(text):
        text = re.sub(r"[^\n]", " ", prolog[0]) + text[prolog.end() :]
    stack: list[tuple[str, str, int]] = []  # open elements: name, speaker, and where the speaker's element began
    last_owner, ends_with_space = -1, False
    line, counted = 1, 0
    for match in [*_ELEMENT.finditer(text), None]:
        words = text[counted : match.start() if match else len(text)]
        if words.strip():
            first = line + words[: len(words) - len(words.lstrip())].count("\n")
            spoken = html.unescape(" ".join(words.split()))
            _, speaker, owner = stack[-1] if stack else ("", "", -1)
            if not speaker:
                raise invalid_line(path, first, f"nobody speaks {spoken[:40]!r}; put it into the element of a speaker")
            if owner == last_owner:
                space = " " if words[0].isspace() or ends_with_space else ""
                result.turns[-1] = replace(result.turns[-1], text=f"{result.turns[-1].text}{space}{spoken}")
            else:
                result.turns.append(ImportedTurn(first, speaker, spoken))
            last_owner, ends_with_space = owner, words[-1].isspace()
        line += words.count("\n")
        if match is None:
            break
        counted = match.end()
        name = match[2]
        if match[1]:
            if not stack or stack[-1][0] != name:
                expected = f"expected </{stack[-1][0]}>" if stack else "no element is open"
                raise invalid_line(path, line, f"</{name}> closes nothing; {expected}")
            stack.pop()
        elif match[4]:
            result.left_out.append(LeftOut(line, f"<{name}/>"))
        else:
            named = _ELEMENT_NAME.search(match[3])
            if named or name not in _MARKUP:
                stack.append((name, html.unescape(named[1]) if named else name, counted))
            else:
                stack.append((name, *(stack[-1][1:] if stack else ("", -1))))
    if stack:
        raise invalid_line(path, line, f"<{stack[-1][0]}> is not closed")
    return result


def _content_lines(text: str) -> Iterator[tuple[int, str]]:
    """The lines with words, numbered from 1, without the marks of lists and quotations."""
    for number, raw in enumerate(re.split(r"\r\n|[\n\r\f\v]", text), 1):
        if line := _LIST_MARK.sub("", " ".join(raw.split())):
            yield number, line


def _label(line: str) -> _Label | None:
    """The label that a line may begin with."""
    heading = _HEADING.match(line)
    line = _CLOCK.sub("", line[heading.end() :] if heading else line, count=1)
    head = line[:_MAX_LABEL_CHARS]
    if bold := _BOLD.match(head):
        return _Label(bold[2].strip(), line[bold.end() :].strip(), "bold", bold[3].strip())
    if (colon := _COLON.match(head)) and len(colon[1].split()) <= _MAX_NAME_WORDS:
        return _Label(colon[1].strip(), line[colon.end() :].strip(), "colon", colon[2].strip())
    if brackets := _BRACKETS.match(head):
        name, text = brackets[1].strip(), line[brackets.end() :].strip()
        if line[0] == "[" or _NUMBERED.fullmatch(name):
            return _Label(name, text, "colon" if brackets[2] else "brackets")
    if (alone := _ALONE.match(head)) and (heading or line.isupper()) and len(line.split()) <= _MAX_NAME_WORDS:
        return _Label(alone[1].strip(), "", "alone", alone[2] or "")
    return None


def _key(label: _Label) -> str:
    return label.name.casefold()


def _speakers(lines: Sequence[str]) -> dict[str, str]:
    """Which labels are speakers, by their key: the name as first written.

    Those in bold, in capitals, numbered as "Speaker 1" or used more than once are, and all if every line has one. Names
    in brackets need half of the lines, since sounds such as [laughs] are written so too.
    """
    found = [label for line in lines if (label := _label(line))]
    counts = Counter(_key(label) for label in found)
    in_brackets = 2 * sum(label.kind == "brackets" for label in found) >= len(lines)
    is_everywhere = len(found) == len(lines) and all(label.kind != "alone" for label in found)
    names: dict[str, str] = {}
    for label in found:
        is_repeated = counts[_key(label)] > 1
        if label.kind == "brackets":
            is_speaker = in_brackets
        elif label.kind == "alone":
            is_speaker = is_repeated
        else:
            is_speaker = is_everywhere or is_repeated or label.kind == "bold" or label.name.isupper()
        if is_speaker or _NUMBERED.fullmatch(label.name):
            names.setdefault(_key(label), label.name)
    return names


def _read_lines(path: str, text: str, example: str) -> DialogueText:
    """Turns that begin with a label; lines without one continue the turn before."""
    lines = list(_content_lines(text))
    names = _speakers([line for _, line in lines])
    result = DialogueText([])
    turns: list[tuple[int, str, list[str]]] = []
    others: dict[str, None] = {}
    for number, line in lines:
        label = _label(line)
        if label and _key(label) in names:
            turns.append((number, names[_key(label)], [label.text] if label.text else []))
            if label.aside:
                result.left_out.append(LeftOut(number, label.aside))
        elif _SEPARATOR.match(line):
            continue
        elif _HEADING.match(line) or _ASIDE.match(line):
            result.left_out.append(LeftOut(number, line[:40]))
        elif not turns:
            raise invalid_line(path, number, f"expected a turn such as {example!r}, got {line[:40]!r}")
        else:
            if label:
                others[label.name] = None
            turns[-1][2].append(line)
    if others:
        shown = ", ".join(list(others)[:MAX_SHOWN])
        _LOG.warning("%s: spoken with the text, though they may be speakers: %s", path, shown)
    for number, name, words in turns:
        spoken = _EMPHASIS.sub(r"\2", " ".join(words))
        result.turns.append(ImportedTurn(number, name, spoken))
    return result
