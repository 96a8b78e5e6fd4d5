"""Files by URL, through fsspec: fetched, or uploaded whole, with retries; a failure is a line that says what to do."""

from __future__ import annotations

import atexit
import os
import random
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from functools import cache, lru_cache
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import unquote

from csm_cli.errors import CsmError, InputError, UsageError
from csm_cli.storage.fingerprint import fingerprint
from csm_cli.storage.paths import relative_parts

_URL = re.compile(r"([a-z][a-z0-9+.-]+)://", re.IGNORECASE)
_LIBRARIES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "memory": ("fsspec", "")}  # and the extra that has it
TRIES = 5
_WAIT_SECONDS = 0.5  # before the second try; twice as long before each further one
_PART_BYTES = 16 << 20  # of an upload to S3; a file of two parts and more is sent in parts
_CONNECT_SECONDS = 10
_COPY_BYTES = 1 << 20
_NO_BUCKET = re.compile("bucket does not exist|NoSuchBucket", re.IGNORECASE)
_FINAL = (FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError, NotImplementedError, ValueError)

_T = TypeVar("_T")


def is_url(name: str) -> bool:
    return _URL.match(name) is not None


def local_name(name: str) -> str:
    """`name`, with a `file://` URL as a path. Raises UsageError for such a URL of another host."""
    if not name.lower().startswith("file://"):
        return name
    host, slash, path = name[len("file://") :].partition("/")
    if host not in ("", "localhost") or not slash:
        raise UsageError(f"{name}: write file:///PATH, with three slashes, or the path alone")
    return unquote(f"/{path}")


def check_url(url: str) -> None:
    """Raises UsageError for a scheme that is not known, or whose library is not installed."""
    import importlib.util

    match = _URL.match(url)
    scheme = match[1].lower() if match else ""
    if scheme not in _LIBRARIES:
        raise UsageError(f"{url}: {scheme}:// is not supported; use s3://, gs://, file:// or a path")
    library, extra = _LIBRARIES[scheme]
    if importlib.util.find_spec(library) is None:
        raise UsageError(f'{url}: {scheme}:// needs {library}; pip install "csm-cli[{extra}]"')


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of a URL, and its path there. Raises UsageError as `check_url`."""
    check_url(url)
    system = _filesystem(url.partition(":")[0].lower())
    return system, system._strip_protocol(url)


@lru_cache
def _filesystem(scheme: str) -> Any:
    """One for all threads: fsspec has one for each, with connections of its own."""
    import fsspec

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if scheme == "s3":
        own = {"connect_timeout": _CONNECT_SECONDS, "retries": {"max_attempts": 1}}  # `attempt` tries again
        options["config_kwargs"] = own | dict(fsspec.config.conf.get("s3", {}).get("config_kwargs", {}))
    system = fsspec.filesystem(scheme, **options)
    if scheme == "s3":
        system.retries = 2  # of a request, so that not all of a long upload is repeated
    return system


def attempt(failure: type[CsmError], url: str, call: Callable[[], _T], tries: int = TRIES) -> _T:
    """The result of `call`, which is repeated where it fails for a while.

    Raises:
        FileNotFoundError: there is no such file. FileExistsError: it was to be new.
        failure: anything else.
    """
    for number in range(1, tries + 1):
        try:
            return call()
        except (CsmError, FileExistsError):
            raise
        except Exception as problem:
            if isinstance(problem, FileNotFoundError) and not _NO_BUCKET.search(str(problem)):
                raise
            if isinstance(problem, _FINAL) or _is_of_credentials(problem) or number == tries:
                raise failure(f"{url}: {_reason(problem)}") from problem
        time.sleep(_WAIT_SECONDS * 2 ** (number - 1) * random.uniform(0.5, 1.5))
    raise AssertionError


def _is_of_credentials(problem: BaseException) -> bool:
    kinds = {each.__name__ for each in type(problem).__mro__}
    return any("Credential" in name for name in kinds) or bool(kinds & {"ProfileNotFound", "ParamValidationError"})


def _reason(problem: BaseException) -> str:
    text = " ".join(str(problem).split())[:200].rstrip(".")
    kind = type(problem).__name__
    if isinstance(problem, FileNotFoundError):
        return "there is no such bucket; create it, or correct the name"
    if isinstance(problem, PermissionError):
        return f"access is denied ({text}); check the credentials and the rights on the bucket"
    if _is_of_credentials(problem):
        return f"{text}; set AWS_PROFILE or AWS_ACCESS_KEY_ID (s3), GOOGLE_APPLICATION_CREDENTIALS (gs)"
    if "Connect" in kind or "Timeout" in kind or "DNS" in kind or isinstance(problem, ConnectionError | TimeoutError):
        return f"cannot be reached ({text}); check the network and AWS_ENDPOINT_URL, and run again"
    return f"{kind}: {text}; run again"


def upload(url: str, source: Path, failure: type[CsmError]) -> None:
    """Puts a file at `url`: it appears whole, or is as before. Raises as `attempt`."""
    system, path = filesystem(url)
    parts = {"chunksize": _PART_BYTES} if url.lower().startswith("s3:") else {}
    attempt(failure, url, lambda: system.put_file(str(source), path, **parts))


def fetch(url: str, target: IO[bytes], max_bytes: int = 1 << 62) -> None:
    """Copies a file to an open one. Raises FileNotFoundError; InputError: it cannot be read, or is too large."""
    system, path = filesystem(url)

    def copy() -> None:
        target.seek(0)
        target.truncate()
        with system.open(path, "rb", block_size=16 * _COPY_BYTES) as file:
            while block := file.read(_COPY_BYTES):
                target.write(block)
                if target.tell() > max_bytes:
                    raise InputError(f"{url}: is larger than {max_bytes >> 20} MB")

    attempt(InputError, url, copy)
    target.flush()


@cache
def _fetched_folder() -> Path:
    folder = tempfile.mkdtemp(prefix="csm-fetched-")
    owner = os.getpid()
    atexit.register(lambda: shutil.rmtree(folder, ignore_errors=True) if os.getpid() == owner else None)
    return Path(folder)


@lru_cache(maxsize=1 << 16)
def fetched_file(base: str, name: str) -> Path | None:
    """A copy, for the time of this process, of the file `name` below the URL `base`; None where there is none.

    Raises:
        InputError: it cannot be read.
    """
    try:
        url = f"{base}/{'/'.join(relative_parts(name))}"
    except InputError:  # a path that leads elsewhere
        return None
    path = _fetched_folder() / fingerprint(url, length=16) / Path(name).name
    path.parent.mkdir(exist_ok=True)
    try:
        with path.open("w+b") as file:
            fetch(url, file)
    except FileNotFoundError:
        path.unlink()
        return None
    return path


def is_fetched(path: Path) -> bool:
    """Whether a file is a copy that `fetched_file` made."""
    return _fetched_folder.cache_info().currsize > 0 and path.is_relative_to(_fetched_folder())
