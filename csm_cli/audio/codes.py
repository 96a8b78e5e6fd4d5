"""Codes of a codec on disk, one array [T, K] per .npy file, read back only where it is one."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from csm_cli.audio.limits import MAX_CODES_BYTES
from csm_cli.storage.untrusted import read_regular


def write_codes(codes: NDArray[np.int64]) -> bytes:
    """The file of codes [T, K], which are stored in 16 bits."""
    buffer = io.BytesIO()
    np.save(buffer, codes.astype(np.int16))
    return buffer.getvalue()


def read_codes(path: Path, codebooks: int, vocab: int) -> NDArray[np.int64]:
    """Codes int64 [T, codebooks], each from 0 to below `vocab`.

    Raises:
        OSError: it cannot be read, is not a regular file, or is too large.
        ValueError: as `parse_codes`.
    """
    return parse_codes(read_regular(path, MAX_CODES_BYTES), codebooks, vocab)


def parse_codes(content: bytes, codebooks: int, vocab: int) -> NDArray[np.int64]:
    """Codes int64 [T, codebooks] of a file's content, each from 0 to below `vocab`.

    The header is checked against the size of the file before anything is allocated by it.

    Raises:
        ValueError: it is not an array of integers of this shape and range.
    """
    file = io.BytesIO(content)
    try:
        header = npy.read_array_header_1_0 if npy.read_magic(file) == (1, 0) else npy.read_array_header_2_0
        shape, fortran_order, dtype = header(file)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, EOFError) as error:
        raise ValueError(f"is not an array of numpy ({error})") from error
    data = file.read()
    if dtype.kind not in "iu" or fortran_order or len(shape) != 2 or shape[1] != codebooks or not shape[0]:
        raise ValueError(f"holds {dtype} {list(shape)}, expected integers [frames, {codebooks}]")
    if shape[0] * shape[1] * dtype.itemsize != len(data):
        raise ValueError("is cut off or has more than its array")
    codes: NDArray[np.int64] = np.frombuffer(data, dtype).reshape(shape).astype(np.int64)
    if not 0 <= codes.min() <= codes.max() < vocab:
        raise ValueError(f"holds codes from {codes.min()} to {codes.max()}, expected 0 to {vocab - 1}")
    return codes
