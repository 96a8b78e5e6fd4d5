"""csm models: checkpoints in the Hugging Face cache."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from csm_cli.cli.console import configure_logging, emit, emit_json, log_line
from csm_cli.cli.options import OutputOptions
from csm_cli.settings import setting

if TYPE_CHECKING:
    from csm_cli.checkpoint.find import CachedSnapshot

Id = Annotated[str, typer.Argument(metavar="ID", help="A Hugging Face id, such as sesame/csm-1b.")]
Revision = Annotated[str | None, typer.Option("--revision", metavar="REV", help="A commit, branch or tag.")]
Offline = Annotated[bool, setting("offline")]
Json = Annotated[bool, typer.Option("--json", help="The same as JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Only the path, on standard output.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Tell more on the way.")]

models = typer.Typer(name="models", help="Checkpoints: what is cached, fetched and removed.", no_args_is_help=True)


@models.command(name="list")
def list_(json: Json = False) -> None:
    """The bundled voice, and every CSM and codec in the cache."""
    from csm_cli.checkpoint.find import list_cached

    found = list_cached()
    if json:
        emit_json([_record(each) for each in found])
        return
    width = max([len(each.name) for each in found] + [len("bundled voice")])
    emit(f"{'bundled voice':<{width}}  what speaks without --model")
    for each in found:
        day = time.strftime("%Y-%m-%d", time.localtime(each.modified))
        emit(f"{each.name:<{width}}  {_size(each.size):>8}  {each.revision[:8]}  {day}  {', '.join(each.refs)}")


@models.command()
def pull(
    id: Id,
    revision: Revision = None,
    offline: Offline = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fetch a checkpoint, and no file more than it needs; every tensor's name and shape is checked."""
    from csm_cli.checkpoint import open_checkpoint

    configure_logging(OutputOptions(quiet=quiet, verbose=verbose))
    checkpoint = open_checkpoint(id, revision, offline=offline)
    if not quiet:
        log_line(f"{id} is here, commit {checkpoint.revision or 'none: it is local'}; speak with it: --model {id}")
    emit(str(checkpoint.tokenizer_file.parent))


@models.command()
def where(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="The bundled voice if none.")] = None,
    revision: Revision = None,
) -> None:
    """The folder of a cached checkpoint."""
    from csm_cli.checkpoint.find import LocalFolder, find_cached, find_source

    source = find_source(id, revision, offline=True)
    emit(str(source.path if isinstance(source, LocalFolder) else find_cached(source.name, revision)[0].folder))


@models.command()
def rm(id: Id, revision: Revision = None) -> None:
    """Remove a checkpoint from the cache, or one revision of it."""
    from csm_cli.checkpoint.find import find_cached, remove_cached

    gone = find_cached(id, revision)
    freed = remove_cached(gone)
    log_line(f"{id} removed, {', '.join(each.revision[:8] for each in gone)}; {_size(freed)} freed")


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def _record(snapshot: CachedSnapshot) -> dict[str, Any]:
    return {
        "id": snapshot.name,
        "revision": snapshot.revision,
        "refs": list(snapshot.refs),
        "folder": str(snapshot.folder),
        "bytes": snapshot.size,
    }
