"""Fuzzes every reader of csm with damaged files: python tests/fuzz/run.py --minutes 10 [--seed N] [--only NAME]

Each case mutates a file of the corpus and reads it as csm would. A reader may refuse it with a CsmError; any other
exception, or more than ten seconds of CPU time, is a finding: the file is saved, and the run ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from csm_cli.batch.ledger import Ledger
from csm_cli.checkpoint import open_checkpoint
from csm_cli.data.dataset import SpeakerNumbers
from csm_cli.data.discovery import find_datasets
from csm_cli.data.readers import RowReader, read_datasets
from csm_cli.errors import CsmError
from csm_cli.generation.turn_cache import TurnCache
from csm_cli.script import read_either, read_manifest, script_from
from csm_cli.script.importers import convert
from csm_cli.settings import read_configuration
from csm_cli.storage.folders import check_replaceable
from csm_cli.storage.outputs import LocalOutputs
from csm_cli.voices.store import list_voices

CORPUS = Path(__file__).with_name("corpus")
ASSETS = Path(__file__).parents[2] / "csm_cli" / "assets" / "voice"
CASES = Path(__file__).parents[1] / "cases"
MAX_CPU_SECONDS = 10.0
MAX_BYTES = 64 << 10
# Pieces that readers treat specially; inserted anywhere.
TOKENS = [
    *(b"\0", b"\r", b"\n\n\n", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"\x1b[2J", b"\xc2\x85", b"\x0c", b"\t"),
    *(b" --> ", b"00:00:01,5 --> 00:00:02,75", b"<v ", b"</v>", b"[S1]", b"[SPEAKER_00]:", b"[0]", b"NOTE", b"WEBVTT"),
    *(b"[", b"{", b"]", b"}", b'"', b'""', b"'", b"|", b",", b";", b":", b"#", b"- ", b"&a ", b"*a", b"<<: ", b"!!"),
    *(b"null", b"true", b"NaN", b"1e999", b"-1", b"99999999999999999999", b"../../x", b"/dev/zero", b"~", b"\\u0000"),
    *(b"id", b"text", b"speaker", b"[key]", b"turns", b"context", b"audio", b"seed", b"num_hidden_layers", b"vocab"),
]


@dataclass(frozen=True)
class Target:
    """A reader and the files that it is fed. place: where a mutated file goes, below the working folder."""

    name: str
    read: Callable[[Path], object]
    seeds: list[Path]
    place: Callable[[Path, Path], Path] = lambda folder, seed: folder / seed.name


def read_script_file(path: Path) -> None:
    for conversation in read_either(path):
        len(conversation.turns)


def read_converted(path: Path) -> None:
    script_from(convert(str(path)))


def read_dataset(path: Path) -> None:
    for _ in read_datasets(find_datasets([path]), RowReader(SpeakerNumbers())):
        pass


def read_toml(path: Path) -> None:
    os.chdir(path.parent)
    _ = read_configuration().generation


def read_checkpoint(path: Path) -> None:
    checkpoint = open_checkpoint(str(path.parent), offline=True)
    _ = checkpoint.config


def read_ledger(path: Path) -> None:
    with Ledger(LocalOutputs(path.parent)) as ledger:
        list(ledger.latest())


def read_turn_cache(path: Path) -> None:
    cache = TurnCache.open(path.parent.with_name("out.wav"), 8, 1024)
    for turn in cache.turns:
        cache.is_intact(turn)


def read_voice(path: Path) -> None:
    list_voices()


def targets(home: Path) -> list[Target]:
    corpus = {path.name: path for path in CORPUS.iterdir()}

    def seeds(*names: str) -> list[Path]:
        return [corpus[name] for name in names]

    cases = [path for path in CASES.rglob("*") if path.suffix in (".yaml", ".jsonl", ".json")]
    return [
        Target(
            "scripts",
            read_script_file,
            [*seeds("script.yaml", "chat.json", "manifest.jsonl", "dia.txt", "play.txt", "items.json"), *cases],
        ),
        Target(
            "manifests",
            lambda path: list(read_manifest(path)),
            seeds("manifest.jsonl", "manifest.csv", "list.txt", "semicolons.csv", "tabs.tsv", "items.json"),
        ),
        Target(
            "foreign forms",
            read_converted,
            [
                *seeds("cues.srt", "cues.vtt", "cues.ass", "cues.sbv", "cues.lrc", "printed.txt", "whisperx.json"),
                *seeds("dia.txt", "higgs.json", "vibe.txt", "play.txt", "play.md", "elements.xml"),
            ],
        ),
        Target("datasets", read_dataset, seeds("metadata.csv", "metadata.jsonl", "list.txt")),
        Target("toml", read_toml, seeds("csm.toml")),
        Target("checkpoints", read_checkpoint, [ASSETS / "config.json", ASSETS / "generation_config.json"]),
        Target("ledgers", read_ledger, seeds("results.jsonl")),
        Target(
            "turn caches", read_turn_cache, seeds("turns.json"), lambda folder, seed: folder / ".out.csm" / seed.name
        ),
        Target("voices", read_voice, seeds("voice.json"), lambda folder, seed: home / "voices" / "ana" / seed.name),
        Target(
            "folder marks",
            lambda path: check_replaceable(path.parent, "checkpoint"),
            seeds("folder.json"),
            lambda folder, seed: folder / ".csm-folder.json",
        ),
    ]


def mutations(data: bytes, chance: random.Random) -> Iterator[bytes]:
    """`data` after one to eight changes, at most 64 KB."""
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        start = chance.randrange(len(data) + 1)
        end = min(len(data), start + chance.choice((1, 3, 20, 400)))
        piece = data[start:end]
        change = chance.randrange(7)
        if change == 0:
            data = data[:start] + data[end:]
        elif change == 1:
            data = data[:start] + piece * chance.choice((2, 3, 50, 2000)) + data[end:]
        elif change == 2:
            data = data[:start] + chance.choice(TOKENS) * chance.choice((1, 1, 1, 2, 100, 5000)) + data[start:]
        elif change == 3:
            data = data[:start] + chance.randbytes(len(piece)) + data[end:]
        elif change == 4:
            data = data[:start]
        elif change == 5:
            other = chance.randrange(len(data) + 1)
            data = data[:other] + piece + data[other:]
        else:
            lines = data.splitlines(keepends=True)
            chance.shuffle(lines)
            data = b"".join(lines)
        data = data[:MAX_BYTES]
    yield data


def run(minutes: float, seed: int, only: str | None) -> int:
    chance, tried, refused = random.Random(seed), Counter[str](), Counter[str]()
    slowest: dict[str, float] = {}
    logging.disable()
    resource.setrlimit(resource.RLIMIT_AS, (6 << 30, resource.RLIM_INFINITY))  # so that a bomb is a MemoryError
    with tempfile.TemporaryDirectory() as name:
        home, work, start = Path(name) / "home", Path(name) / "work", Path.cwd()
        os.environ["CSM_HOME"] = str(home)
        for variable in [each for each in os.environ if each.startswith("CSM_") and each != "CSM_HOME"]:
            del os.environ[variable]
        chosen = [each for each in targets(home) if only in (None, each.name)]
        deadline = time.monotonic() + 60 * minutes
        while time.monotonic() < deadline:
            target = chance.choice(chosen)
            source = chance.choice(target.seeds)
            (data,) = mutations(source.read_bytes(), chance)
            shutil.rmtree(work, ignore_errors=True)
            path = target.place(work, source)
            path.parent.mkdir(parents=True, exist_ok=True)
            if target.name == "checkpoints":
                for file in ASSETS.iterdir():
                    if file.is_file():
                        (path.parent / file.name).symlink_to(file)
                path.unlink()
            path.write_bytes(data)
            tried[target.name] += 1
            before = time.process_time()
            try:
                target.read(path)
            except CsmError:
                refused[target.name] += 1
            except Exception:
                return report(target, data, start, traceback.format_exc(limit=-3)[:3000])
            finally:
                os.chdir(start)
            seconds = time.process_time() - before
            slowest[target.name] = max(seconds, slowest.get(target.name, 0.0))
            if seconds > MAX_CPU_SECONDS:
                return report(target, data, start, f"took {seconds:.1f} s of CPU time")
    for name in sorted(tried):
        print(f"{name:14} {tried[name]:7} tried, {refused[name]:7} refused, slowest {slowest[name]:.2f} s")
    print(json.dumps({"seed": seed, "tried": sum(tried.values()), "findings": 0}))
    return 0


def report(target: Target, data: bytes, folder: Path, problem: str) -> int:
    saved = folder / f"fuzz-{target.name.replace(' ', '-')}.bin"
    saved.write_bytes(data)
    print(f"{target.name}: {problem}\nthe file is {saved}")
    return 1


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default=None, help="one target's name")
    arguments = parser.parse_args()
    sys.exit(run(arguments.minutes, arguments.seed, arguments.only))
