"""csm models: list, pull, locate and remove checkpoints in the Hugging Face cache."""

from __future__ import annotations

import time
from typing import Annotated

import typer
from rich.filesize import decimal

from csm_cli.cli.console import configure_logging, emit, emit_json, log_line
from csm_cli.cli.options import OutputOptions
from csm_cli.settings import setting

Id = Annotated[str, typer.Argument(metavar="ID", help="A Hugging Face id, such as sesame/csm-1b.")]
Revision = Annotated[str | None, typer.Option("--revision", metavar="REV", help="A commit, branch or tag.")]
Offline = Annotated[bool, setting("offline")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print only the path.")]
Verbose = Annotated[bool, typer.Option("--verbose", help="Log more.")]

models = typer.Typer(name="models", help="List, pull and remove checkpoints.", no_args_is_help=True)


@models.command(name="list")
def list_(json: Json = False) -> None:
    """List the bundled voice, and every CSM and codec in the cache."""
    from csm_cli.checkpoint.find import list_cached

    cached = list_cached()
    if json:
        emit_json(
            [
                {"id": name, "revision": commit.commit_hash, "refs": sorted(commit.refs)}
                | {"folder": str(commit.snapshot_path), "bytes": commit.size_on_disk}
                for name, commit in cached
            ]
        )
        return
    width = max(len(name) for name in ("bundled voice", *(name for name, _ in cached)))
    emit(f"{'bundled voice':<{width}}  the default without --model")
    for name, commit in cached:
        size, day = decimal(commit.size_on_disk), time.strftime("%Y-%m-%d", time.localtime(commit.last_modified))
        emit(f"{name:<{width}}  {size:>8}  {commit.commit_hash[:8]}  {day}  {', '.join(sorted(commit.refs))}")


@models.command()
def pull(
    id: Id, revision: Revision = None, offline: Offline = False, quiet: Quiet = False, verbose: Verbose = False
) -> None:
    """Download a checkpoint, only the files it needs, and check the name and shape of every tensor."""
    from csm_cli.checkpoint import open_checkpoint

    configure_logging(OutputOptions(quiet=quiet, verbose=verbose))
    checkpoint = open_checkpoint(id, revision, offline=offline)
    if not quiet:
        commit = f"commit {checkpoint.revision}" if checkpoint.revision else "local"
        log_line(f"{id} is complete ({commit}); use it with --model {id}")
    emit(str(checkpoint.tokenizer_file.parent))


@models.command()
def where(
    id: Annotated[str | None, typer.Argument(metavar="[ID]", help="Default: the bundled voice.")] = None,
    revision: Revision = None,
) -> None:
    """Print the folder of a cached checkpoint."""
    from csm_cli.checkpoint.find import LocalFolder, find_cached, find_source

    source = find_source(id, revision, offline=True)
    emit(str(source.path if isinstance(source, LocalFolder) else find_cached(source.name, revision)[0].snapshot_path))


@models.command()
def rm(id: Id, revision: Revision = None) -> None:
    """Remove a checkpoint from the cache, or one revision of it."""
    from csm_cli.checkpoint.find import find_cached, remove_cached

    commits = find_cached(id, revision)
    freed = decimal(remove_cached(commits))
    log_line(f"{id} removed: {', '.join(each.commit_hash[:8] for each in commits)}; {freed} freed")
