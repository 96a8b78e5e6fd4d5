"""Files that others may have written: read only where they are regular, of a bounded size, and JSON of a bounded depth.

Configurations, indexes, ledgers, states, sidecars and saved voices are read through this module, so that a link to a
device or a pipe, a file of gigabytes, or thousands of nested brackets is an ordinary error of the reader.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

MAX_JSON_DEPTH = 64  # our deepest file has 6 levels, a transformers config about 5; Python recurses on each
MAX_SMALL_FILE = 16 << 20  # bytes: configurations and voices have kilobytes, an index of 100,000 tensors about 10 MB


def read_regular(path: Path, max_bytes: int = MAX_SMALL_FILE) -> bytes:
    """The content of a regular file of at most `max_bytes`.

    Raises:
        OSError: also with a `strerror` of its own for a device, a pipe or a folder, and for a larger file.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with os.fdopen(descriptor, "rb") as file:  # opened without waiting for the other end of a pipe
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "is not a regular file", str(path))
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise OSError(errno.EFBIG, f"is larger than {max_bytes:,} bytes", str(path))
    return data


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: not JSON, not UTF-8, more than `MAX_JSON_DEPTH` levels deep, or a number of thousands of digits.
    """
    text = text.decode("utf-8") if isinstance(text, bytes) else text
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError(_TOO_DEEP) from None
    if text.count("[") + text.count("{") > MAX_JSON_DEPTH:  # else it cannot be that deep
        _check_depth(value)
    return value


def read_json(path: Path, max_bytes: int = MAX_SMALL_FILE) -> Any:
    """The value of a JSON file. Raises OSError as `read_regular`, ValueError as `parse_json`."""
    return parse_json(read_regular(path, max_bytes))


_TOO_DEEP = f"more than {MAX_JSON_DEPTH} levels deep"


def _check_depth(value: Any) -> None:
    """Raises ValueError; goes level by level, since recursion is what a deep value breaks."""
    level = [value]
    for _ in range(MAX_JSON_DEPTH + 1):
        level = (
            [
                inner
                for each in level
                for inner in (each.values() if isinstance(each, dict) else each)
                if isinstance(inner, dict | list)
            ]
            if isinstance(level[0], dict | list)
            else []
        )
        if not level:
            return
    raise ValueError(_TOO_DEEP)
