"""Where a checkpoint's files come from: a folder on this machine, or a repository on Hugging Face."""

from __future__ import annotations

import difflib
import errno
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from csm_cli.errors import (
    CheckpointInvalid,
    ModelError,
    ModelGated,
    ModelNotFound,
    ModelOffline,
    OutputFailed,
    UsageError,
)

OFFICIAL, MIRROR, MIMI = "sesame/csm-1b", "unsloth/csm-1b", "kyutai/mimi"
BUNDLED = "bundled voice"
_REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_WEIGHT_SUFFIXES = (".safetensors", ".pt", ".json")


@dataclass(frozen=True)
class LocalFolder:
    """A directory; `weights` is the one file somebody named inside it. offline: what it lacks is not fetched."""

    path: Path
    name: str
    weights: str | None = None
    revision: None = None
    offline: bool = False

    def find(self, file: str) -> Path | None:
        """The file's path, None where there is none."""
        path = self.path / file
        return path if path.is_file() else None

    def absent(self, file: str) -> ModelError:
        """What to tell when a needed file is not there."""
        return CheckpointInvalid(f"{self.path} has no {file}; name a folder that holds a whole CSM checkpoint")


class HubRepository:
    """A repository on Hugging Face; files come through its cache, all from one commit. offline: from nowhere else.

    `find` raises OutputFailed where the disk is full, ModelGated, ModelNotFound and ModelOffline.
    """

    weights: None = None

    def __init__(self, name: str, revision: str | None = None, offline: bool = False) -> None:
        self.name = name
        self.revision = revision
        self.offline = offline
        self._found_any = False
        self._offline: bool | None = True if offline else None

    def find(self, file: str) -> Path | None:
        """The file's path in the cache, downloaded where needed; None where the repository has no such file."""
        from huggingface_hub import errors

        try:
            return self._download(file)
        except errors.LocalEntryNotFoundError as problem:
            self._offline = True
            if not self._found_any:
                raise self.absent(file) from problem
            return None
        except errors.EntryNotFoundError:
            return None

    def _download(self, file: str) -> Path:
        from huggingface_hub import errors, hf_hub_download

        if self._offline is None:
            self._offline = not self._answers()
        try:
            found = hf_hub_download(self.name, file, revision=self.revision, local_files_only=self._offline)
        except errors.EntryNotFoundError:
            raise
        except errors.GatedRepoError as problem:
            raise ModelGated(_gate(self.name)) from problem
        except errors.RevisionNotFoundError as problem:
            raise ModelNotFound(f"{self.name} has no revision {self.revision!r} on Hugging Face") from problem
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as problem:
            raise _unknown(self.name, "or a private repository that `hf auth login` opens") from problem
        except Exception as problem:  # the hub's transport and its exceptions change between releases
            if getattr(problem, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
                raise OutputFailed(f"no room for {self.name}: make room, or set HF_HOME to a larger disk") from problem
            reason = (str(problem).splitlines() or [type(problem).__name__])[0]
            raise ModelOffline(f"{file} of {self.name} could not be downloaded: {reason}") from problem
        path = Path(found)
        self._found_any, self.revision = True, path.parent.name  # snapshots/<commit>/<file>
        return path

    def _answers(self) -> bool:
        """Whether the hub can be reached: asked once, since the hub's client retries each file for long."""
        from huggingface_hub import errors, get_hf_file_metadata, hf_hub_url

        try:
            get_hf_file_metadata(hf_hub_url(self.name, "config.json", revision=self.revision))
        except errors.HfHubHTTPError:
            return True  # what it refuses is told by the download
        except Exception:  # the transport's own, which changes between the hub's releases
            return False
        return True

    def absent(self, file: str) -> ModelError:
        """What to tell when a needed file is not there."""
        if self._offline:
            return ModelOffline(
                f"{file} of {self.name} is not in the cache and Hugging Face cannot be reached"
                " (or --offline or HF_HUB_OFFLINE is set); connect once, or leave --model out to use the bundled voice"
            )
        return CheckpointInvalid(f"{self.name} on Hugging Face has no {file}; name a repository that holds a CSM")


Source = LocalFolder | HubRepository


def require_file(source: Source, file: str) -> Path:
    """The file's path, or the source's own diagnostic."""
    path = source.find(file)
    if path is None:
        raise source.absent(file)
    return path


def locate(model: str | None, revision: str | None = None, offline: bool = False) -> Source:
    """What `--model` names: a directory, a weights file, a Hugging Face id; None is the bundled voice.

    offline: nothing is fetched.

    Raises:
        ModelNotFound: nothing by that name, with the near ones.
        UsageError: a revision for something that is not on Hugging Face.
    """
    folder = _folder(model)
    if folder is None:
        return HubRepository(str(model), revision, offline)
    if revision is not None:
        raise UsageError(f"--revision belongs to a Hugging Face id, and {folder.name} is a local checkpoint")
    return replace(folder, offline=offline)


def _folder(model: str | None) -> LocalFolder | None:
    """The folder that `model` names, None where it can only be a Hugging Face id."""
    if model is None:
        return _bundled()
    path = Path(model)
    with suppress(OSError, RuntimeError):  # a name longer than any file's; the home of nobody
        path = path.expanduser()
        if model and path.is_dir():
            return LocalFolder(path, model)
        if path.is_file():
            return LocalFolder(path.parent, model, weights=path.name)
    if not _REPOSITORY.fullmatch(model) or path.suffix in _WEIGHT_SUFFIXES:
        raise _unknown(model)
    return None


def _bundled() -> LocalFolder:
    path = Path(str(resources.files("csm_cli") / "assets" / "voice"))
    if not path.is_dir():
        raise ModelNotFound(
            f"the bundled voice is missing from this installation; name a model, as in --model {MIRROR}"
        )
    return LocalFolder(path, BUNDLED)


def _unknown(model: str, also: str = "") -> ModelNotFound:
    beside: list[str] = []
    with suppress(OSError):
        beside = [str(path) for path in Path(model).parent.iterdir() if path.is_dir()]
    near = difflib.get_close_matches(model, [MIRROR, OFFICIAL, *sorted(beside)], n=2, cutoff=0.6)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return ModelNotFound(f"{model!r} is neither a local checkpoint nor a Hugging Face id{also and f' ({also})'}{hint}")


def _gate(name: str) -> str:
    mirror = f"; {MIRROR} is the same model without a gate" if name == OFFICIAL else ""
    return f"{name} is gated: accept its licence at https://huggingface.co/{name}, then run `hf auth login`{mirror}"
