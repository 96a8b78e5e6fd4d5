"""Checkpoints in the Hugging Face cache: which there are, where they lie, and how they leave."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from csm_cli.checkpoint.find import MIMI, MIRROR, OFFICIAL
from csm_cli.errors import ModelNotFound, OutputFailed

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo, HFCacheInfo

_KINDS = ("csm", "mimi")


@dataclass(frozen=True)
class CachedSnapshot:
    """One commit of a repository in the cache. folder: its files; size: their bytes, shared ones counted too."""

    name: str
    revision: str
    refs: tuple[str, ...]
    folder: Path
    size: int
    modified: float


def snapshots() -> list[CachedSnapshot]:
    """The commits of CSMs and of their codec in the cache, by name, the newest of each first."""
    found = [
        CachedSnapshot(
            name=repository.repo_id,
            revision=revision.commit_hash,
            refs=tuple(sorted(revision.refs)),
            folder=revision.snapshot_path,
            size=revision.size_on_disk,
            modified=revision.last_modified,
        )
        for repository in _repositories()
        for revision in repository.revisions
        if _is_speech(repository.repo_id, revision.snapshot_path)
    ]
    return sorted(found, key=lambda each: (each.name, -each.modified))


def find_cached(name: str, revision: str | None = None) -> list[CachedSnapshot]:
    """The cached commits of a repository, or those of `revision`, a commit's beginning or a branch.

    Raises:
        ModelNotFound: none is cached; says which are near.
    """
    every = snapshots()
    own = [each for each in every if each.name == name]
    wanted = [each for each in own if revision is None or each.revision.startswith(revision) or revision in each.refs]
    if wanted:
        return wanted
    if own:
        raise ModelNotFound(f"{name} is cached, but not its revision {revision!r}; see `csm models list`")
    near = difflib.get_close_matches(name, sorted({each.name for each in every}), n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}?" if near else f"fetch it with `csm models pull {name}`"
    raise ModelNotFound(f"{name!r} is not in the cache; {hint}")


def remove(gone: Sequence[CachedSnapshot]) -> int:
    """Removes commits from the cache; returns how many bytes that freed.

    Raises:
        OutputFailed: a file could not be removed.
    """
    strategy = _scan().delete_revisions(*(each.revision for each in gone))
    strategy.execute()
    for each in gone:  # what it could not remove, it only logs
        if each.folder.exists():
            raise OutputFailed(f"{each.folder}: could not be removed; see whose it is")
    return int(strategy.expected_freed_size)


def _repositories() -> list[CachedRepoInfo]:
    from huggingface_hub.errors import CacheNotFound

    try:
        return [each for each in _scan().repos if each.repo_type == "model"]
    except CacheNotFound:  # nothing was ever fetched
        return []


def _scan() -> HFCacheInfo:
    from huggingface_hub import constants, scan_cache_dir

    return scan_cache_dir(constants.HF_HUB_CACHE)


def _is_speech(name: str, folder: Path) -> bool:
    """Whether this is a CSM or a codec; the original format has no config that says so."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        kind = None
    return kind in _KINDS or name in (OFFICIAL, MIRROR, MIMI)
