"""Where a checkpoint's files come from: a local folder, a repository on Hugging Face, or its cache."""

from __future__ import annotations

import difflib
import errno
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.errors import (
    CheckpointInvalid,
    ModelError,
    ModelGated,
    ModelNotFound,
    ModelOffline,
    OutputFailed,
    UsageError,
)
from csm_cli.models.csm.family import FAMILY
from csm_cli.storage.untrusted import read_json

if TYPE_CHECKING:
    from huggingface_hub import CachedRevisionInfo, HFCacheInfo

OFFICIAL, MIRROR, MIMI = "sesame/csm-1b", "unsloth/csm-1b", "kyutai/mimi"
BUNDLED = "bundled voice"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".json")
_PLACEHOLDERS = (  # how a file begins that stands for another, what it is, and what to do
    (rb"version https?://[\w.-]+/spec/v", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (rb"version http://git-media\.io/", "a Git LFS pointer, not the file itself", "run `git lfs pull`"),
    (rb"/annex/objects/", "a git-annex pointer, not the file itself", "run `git annex get`"),
    (
        rb"\s*<(!doctype html|html)",
        "a web page, not the file itself",
        "download the file, with `csm models pull` for one",
    ),
)
_MODEL_TYPES = ("csm", "mimi")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class LocalFolder:
    """A directory. weights: the file in it that was named explicitly. offline: missing files are not downloaded."""

    path: Path
    name: str
    weights: str | None = None
    revision: None = None
    offline: bool = False

    def find(self, file: str) -> Path | None:
        """The file's path; None if it does not exist.

        Raises:
            CheckpointInvalid: a placeholder stands for it, such as a pointer of Git LFS.
        """
        path = self.path / file
        if not path.is_file():
            return None
        check_content(path)
        return path

    def missing(self, file: str) -> ModelError:
        """The error to raise where a required file does not exist."""
        others = sorted(path.name for path in self.path.glob("*") if path.suffix in _WEIGHT_SUFFIXES[:-1])
        hint = "name a folder that holds a whole CSM checkpoint"
        if others and self.weights is None and Path(file).suffix in _WEIGHT_SUFFIXES:
            hint = f"{hint}, or a weights file ({', '.join(others[:5])})"
        return CheckpointInvalid(f"{self.path} has no {file}; {hint}")


def check_content(path: Path) -> None:
    """Raises CheckpointInvalid where a file is only a placeholder: a pointer of Git LFS or git-annex, or a web page."""
    try:
        with path.open("rb") as file:
            start = file.read(100)
    except OSError as error:
        raise CheckpointInvalid(f"{path} cannot be read: {error.strerror}") from error
    for pattern, kind, hint in _PLACEHOLDERS:
        if re.match(pattern, start, re.IGNORECASE):
            raise CheckpointInvalid(f"{path} is {kind}: {hint}")


class HubRepository:
    """A repository on Hugging Face; files come through its cache, all from one commit. offline: from the cache only.

    `find` raises OutputFailed where the disk is full, ModelGated, ModelNotFound and ModelOffline.
    """

    weights: None = None

    def __init__(self, name: str, revision: str | None = None, offline: bool = False) -> None:
        self.name = name
        self.revision = revision
        self.offline = offline
        self._found_any = False
        self._unreachable: bool | None = True if offline else None  # None: not tried yet

    def find(self, file: str) -> Path | None:
        """The file's path in the cache, downloaded if needed; None if the repository has no such file."""
        from huggingface_hub import errors, hf_hub_download

        if self._unreachable is None:
            self._unreachable = not self._is_reachable()
        try:
            with self._refusals(file):
                path = Path(
                    hf_hub_download(self.name, file, revision=self.revision, local_files_only=self._unreachable)
                )
        except errors.LocalEntryNotFoundError as problem:
            self._unreachable = True
            if not self._found_any:
                raise self.missing(file) from problem
            return None
        except errors.EntryNotFoundError:
            return None
        self._found_any, self.revision = True, path.parents[file.count("/")].name  # snapshots/<commit>/<file>
        return path

    def files(self, folder: str) -> list[str]:
        """The paths of the files in a folder of the repository; offline, of those in the cache. Raises as `find`."""
        from huggingface_hub import HfApi, errors

        config = self.find("config.json")  # of the same commit, and whether the repository is there at all
        if config is not None and self._unreachable:
            cached = (config.parent / folder).glob("*")
            return sorted(path.relative_to(config.parent).as_posix() for path in cached if path.is_file())
        try:
            with self._refusals(f"{folder}/"):
                entries = list(HfApi().list_repo_tree(self.name, folder, revision=self.revision))
        except errors.EntryNotFoundError:
            return []
        return sorted(entry.path for entry in entries if hasattr(entry, "size"))

    @contextmanager
    def _refusals(self, file: str) -> Iterator[None]:
        """Raises the hub's errors as ours, but for those of entries that do not exist."""
        from huggingface_hub import errors

        try:
            yield
        except (errors.LocalEntryNotFoundError, errors.EntryNotFoundError):
            raise
        except errors.GatedRepoError as problem:
            mirror = f"; {MIRROR} is the same model without a gate" if self.name == OFFICIAL else ""
            licence = f"accept its licence at https://huggingface.co/{self.name}"
            raise ModelGated(f"{self.name} is gated: {licence}, then run `hf auth login`{mirror}") from problem
        except errors.RevisionNotFoundError as problem:
            raise ModelNotFound(f"{self.name} has no revision {self.revision!r} on Hugging Face") from problem
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as problem:
            raise _unknown_model(self.name, " (or a private repository: run `hf auth login`)") from problem
        except Exception as problem:  # the hub's transport and its exceptions change between releases
            if getattr(problem, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise OutputFailed(f"no room for {self.name}: make room, or set HF_HOME to a larger disk") from problem
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise ModelOffline(f"{file} of {self.name} could not be downloaded: {reason}") from problem

    def _is_reachable(self) -> bool:
        """Asked once, since the hub's client retries each file for long."""
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

        try:
            get_hf_file_metadata(hf_hub_url(self.name, "config.json", revision=self.revision))
        except errors.HfHubHTTPError:
            return True  # the download reports what the server refuses
        except Exception:  # the transport's own exceptions, which change between the hub's releases
            return False
        return True

    def missing(self, file: str) -> ModelError:
        """The error to raise where a required file does not exist."""
        if self._unreachable:
            return ModelOffline(
                f"{file} of {self.name} is not in the cache and Hugging Face cannot be reached"
                " (or --offline or HF_HUB_OFFLINE is set); connect once, or leave --model out to use the bundled voice"
            )
        return CheckpointInvalid(f"{self.name} on Hugging Face has no {file}; name a repository that holds a CSM")


Source = LocalFolder | HubRepository


def require_file(source: Source, file: str) -> Path:
    """The file's path; raises `source.missing` if it does not exist."""
    path = source.find(file)
    if path is None:
        raise source.missing(file)
    return path


def find_source(model: str | None, revision: str | None = None, offline: bool = False) -> Source:
    """What `--model` names: a directory, a weights file, a Hugging Face id; None is the bundled voice.

    offline: nothing is downloaded.

    Raises:
        ModelNotFound: nothing by that name; the message has similar names.
        UsageError: a revision for a local checkpoint.
    """
    name, weights = BUNDLED if model is None else model, None
    folder = Path(str(resources.files("csm_cli") / "assets" / "voice")) if model is None else Path(model)
    with suppress(OSError, RuntimeError):  # a name too long for a file; the home of an unknown user
        folder = folder.expanduser() if model else folder
        if folder.is_file():
            folder, weights = folder.parent, folder.name
        if model != "" and folder.is_dir():
            if revision is not None:
                raise UsageError(f"--revision belongs to a Hugging Face id, and {name} is a local checkpoint")
            if model and _REPOSITORY.fullmatch(model) and not weights:
                _note_local(model)
            return LocalFolder(folder, name, weights, offline=offline)
    if model is None:
        hint = f"name a model, as in --model {MIRROR}"
        raise ModelNotFound(f"the bundled voice is missing from this installation; {hint}")
    if not _REPOSITORY.fullmatch(model) or folder.suffix in _WEIGHT_SUFFIXES:
        raise _unknown_model(model)
    return HubRepository(model, revision, offline)


@cache
def _note_local(model: str) -> None:
    """Said once: a folder of somebody else's may be named like the repository that is meant."""
    _LOG.warning("%s is a folder here, not the Hugging Face repository; write ./%s to say so", model, model)


def _unknown_model(model: str, note: str = "") -> ModelNotFound:
    siblings: list[str] = []
    with suppress(OSError):
        siblings = sorted(str(path) for path in Path(model).parent.iterdir() if path.is_dir())
    similar = difflib.get_close_matches(model, [MIRROR, OFFICIAL, *siblings], n=2, cutoff=0.6)
    hint = f"; did you mean {' or '.join(similar)}?" if similar else ""
    return ModelNotFound(f"{model!r} is neither a local checkpoint nor a Hugging Face id{note}{hint}")


def has_random_voice(name: str) -> bool:
    """Whether a model, by its name, is a published base model, which was trained on no voice in particular."""
    published = {OFFICIAL, MIRROR, *(model.id for model in FAMILY)}
    return name in published or Path(name).name in {each.rpartition("/")[2] for each in published}


def list_cached() -> list[tuple[str, CachedRevisionInfo]]:
    """The cached commits of CSMs and of their codec with their repositories, by name, the newest of each first."""
    from huggingface_hub.errors import CacheNotFound

    try:
        repositories = _scan_cache().repos
    except CacheNotFound:  # nothing was ever downloaded
        return []
    found = [
        (repository.repo_id, commit)
        for repository in repositories
        for commit in repository.revisions
        if repository.repo_type == "model" and _is_csm_or_codec(repository.repo_id, commit.snapshot_path)
    ]
    return sorted(found, key=lambda each: (each[0], -each[1].last_modified))


def find_cached(name: str, revision: str | None = None) -> list[CachedRevisionInfo]:
    """The cached commits of a repository, or those of `revision`, the beginning of a commit or a branch.

    Raises:
        ModelNotFound: none is cached; the message has similar names.
    """
    cached = list_cached()
    own = [commit for repository, commit in cached if repository == name]
    wanted = [
        commit
        for commit in own
        if revision is None or commit.commit_hash.startswith(revision) or revision in commit.refs
    ]
    if wanted:
        return wanted
    if own:
        raise ModelNotFound(f"{name} is cached, but not its revision {revision!r}; see `csm models list`")
    similar = difflib.get_close_matches(name, sorted({repository for repository, _ in cached}), n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(similar)}?" if similar else f"fetch it with `csm models pull {name}`"
    raise ModelNotFound(f"{name!r} is not in the cache; {hint}")


def remove_cached(commits: Sequence[CachedRevisionInfo]) -> int:
    """Removes commits from the cache; returns the number of bytes freed.

    Raises:
        OutputFailed: a file could not be removed.
    """
    strategy = _scan_cache().delete_revisions(*(each.commit_hash for each in commits))
    strategy.execute()
    for each in commits:  # the hub's client only logs what it could not remove
        if each.snapshot_path.exists():
            raise OutputFailed(f"{each.snapshot_path}: could not be removed; check its owner and permissions")
    return int(strategy.expected_freed_size)


def _scan_cache() -> HFCacheInfo:
    from huggingface_hub import constants, scan_cache_dir

    return scan_cache_dir(constants.HF_HUB_CACHE)


def _is_csm_or_codec(name: str, folder: Path) -> bool:
    """By config.json; a checkpoint in the original format need not have one, and is recognized by its name."""
    try:
        model_type = read_json(folder / "config.json").get("model_type")
    except (OSError, ValueError, AttributeError):
        model_type = None
    return model_type in _MODEL_TYPES or name in (OFFICIAL, MIRROR, MIMI, *(model.id for model in FAMILY))
