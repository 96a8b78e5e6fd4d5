"""One digest for everything that is recognized by its content: values, bytes and files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


class Fingerprint:
    """SHA-256 over parts, one after another, fed as they come so that large ones need not be held together.

    A part is text (as UTF-8), bytes, a Path (the file's content), or any other value that JSON holds; dictionaries
    count by their content, not their order.
    """

    def __init__(self, *parts: Any) -> None:
        self._hash = hashlib.sha256()
        for part in parts:
            self.add(part)

    def add(self, part: Any) -> None:
        """Raises OSError where a file cannot be read."""
        if isinstance(part, Path):
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: self._hash)
        elif isinstance(part, bytes | bytearray | memoryview):
            self._hash.update(part)
        else:
            text = part if isinstance(part, str) else json.dumps(part, sort_keys=True, default=str)
            self._hash.update(text.encode("utf-8", "surrogatepass"))

    def hex(self, length: int = 32) -> str:
        """The first `length` hexadecimal digits, at most 64."""
        return self._hash.hexdigest()[:length]


def fingerprint(*parts: Any, length: int = 32) -> str:
    """`length` hexadecimal digits that are equal where all parts are. Raises OSError as `Fingerprint.add`."""
    return Fingerprint(*parts).hex(length)
