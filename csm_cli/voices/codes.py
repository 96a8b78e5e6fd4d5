"""The codes of saved voices, encoded once for each codec and kept beside the voices."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.errors import AudioUnreadable, OutputFailed, OutputRefused
from csm_cli.storage.files import write_atomically
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.storage.paths import user_data_folder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

log = logging.getLogger(__name__)


def cached_codes(audio: Path, codec: str, encode: Callable[[], NDArray[np.int64]]) -> NDArray[np.int64]:
    """The codes [T, K] of a clip by the codec of this mark; encoded where none are kept, and then kept.

    Raises:
        AudioUnreadable: the clip cannot be read.
    """
    import numpy as np

    file = _folder() / f"{_mark(audio)}-{codec}.npy"
    try:
        kept: NDArray[np.int64] = np.load(file, allow_pickle=False)
        return kept
    except (OSError, ValueError, EOFError):  # none, or half of them after a failure of the disk
        codes = encode()
    _keep(file, codes)
    return codes


def remove_codes(audio: Path) -> None:
    """Removes the codes that are kept of a clip."""
    for file in _folder().glob(f"{_mark(audio)}-*.npy"):
        file.unlink(missing_ok=True)


def _folder() -> Path:
    return user_data_folder() / "codes"


def _mark(audio: Path) -> str:
    """What a clip's file holds, in one short word."""
    try:
        return fingerprint(audio, length=16)
    except OSError as problem:
        raise AudioUnreadable(f"{audio}: {problem.strerror}; add the voice again") from problem


def _keep(file: Path, codes: NDArray[np.int64]) -> None:
    import numpy as np

    buffer = io.BytesIO()
    np.save(buffer, codes)
    try:
        write_atomically(file, buffer.getvalue())
    except (OutputRefused, OutputFailed) as problem:
        log.warning("the voice's codes are not kept: %s", problem)
