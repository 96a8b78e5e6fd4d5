"""csm doctor: devices, libraries, folders and settings of this machine."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata, resources
from pathlib import Path
from typing import Annotated, Any

import typer

from csm_cli import __version__
from csm_cli.cli.console import emit, emit_json
from csm_cli.errors import CsmError, SoundDeviceMissing
from csm_cli.storage.paths import user_config_file

_PACKAGES = ("transformers", "huggingface_hub", "tokenizers", "safetensors", "numpy", "soundfile", "librosa")


def doctor(json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False) -> None:
    """Show devices, libraries, folders and settings of this machine."""
    installed = {package: _version(package) for package in _PACKAGES}
    report = {
        "csm": __version__,
        "python": f"{platform.python_version()} ({sys.executable})",
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "torch": _torch(),
        "memory": _memory(),
        "packages": installed,
        "audio": _audio(),
        "playback": _playback(),
        "voice": _bundled_voice(),
        "user": _user(),
        "hub": _hub(),
    }
    if json:
        emit_json(report)
        return
    for section, value in report.items():
        for index, (key, detail) in enumerate(value.items() if isinstance(value, dict) else [("", value)]):
            if isinstance(detail, dict):
                detail = [f"{name.removesuffix('_gb')} {value} GB" for name, value in detail.items()]
            text = (", ".join(map(str, detail)) or "none") if isinstance(detail, list) else detail
            emit(f"{section if index == 0 else '':<10} {f'{key}: ' if key else ''}{text}")


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "missing"


def _torch() -> dict[str, Any]:
    try:
        import torch
    except Exception as error:  # a broken installation fails in many ways
        return {"error": f"cannot be imported: {error}; install torch from https://pytorch.org/get-started/locally"}
    from csm_cli.device import pick_device, pick_dtype

    device = pick_device("auto")
    gpus = [f"cuda:{index} {torch.cuda.get_device_name(index)}" for index in range(torch.cuda.device_count())]
    return {
        "version": str(torch.__version__),
        "devices": ["cpu", *gpus, *(["mps"] if torch.backends.mps.is_available() else [])],
        "auto": f"{device} with {str(pick_dtype('auto', device)).removeprefix('torch.')}",
        "threads": torch.get_num_threads(),
    }


def _memory() -> dict[str, Any]:
    """Free memory of the automatic device, and what the published models take of it, in GB (1e9 bytes).

    int8 is the memory after loading; until then a model takes that of its dtype.
    """
    try:
        import torch

        from csm_cli.checkpoint.sesame import family_config
        from csm_cli.device import pick_device
        from csm_cli.engine.memory_estimate import free_memory, weight_bytes
        from csm_cli.models.csm.family import FAMILY
    except Exception:  # reported where torch is
        return {"unknown": "torch cannot be imported"}
    device = pick_device("auto")
    free = free_memory(device)
    other = torch.bfloat16 if device.type == "cuda" else torch.float32  # of what is not quantized
    report: dict[str, Any] = {"device": str(device), "free_gb": round(free / 1e9, 1) if free else "unknown"}
    for model in FAMILY:
        config = family_config(model)
        needs = {name: weight_bytes(config, getattr(torch, name)) for name in ("float32", "bfloat16")}
        needs["int8"] = weight_bytes(config, other, int8=True)
        report[model.id] = {f"{name}_gb": round(size / 1e9, 1) for name, size in needs.items()}
        fitting = [name for name in ("float32", "bfloat16") if free is None or needs[name] <= free]
        report[f"{model.id} fits"] = fitting
    return report


def _audio() -> dict[str, Any]:
    try:
        import soundfile

        from csm_cli.audio.decoders import decoder_name
    except Exception as error:  # a missing libsndfile is an OSError, a missing package an ImportError
        return {"error": f"cannot be imported: {error}; install libsndfile"}
    return {
        "libsndfile": soundfile.__libsndfile_version__,
        "formats": sorted(soundfile.available_formats()),
        "M4A, AAC, WebM": decoder_name() or "need PyAV or ffmpeg: pip install 'csm-cli[av]'",
    }


def _playback() -> dict[str, Any]:
    from csm_cli.audio.playback import device_name

    try:
        return {"device": device_name()}
    except SoundDeviceMissing as error:  # playing is optional
        return {"unavailable": str(error)}


def _bundled_voice() -> dict[str, Any]:
    folder = Path(str(resources.files("csm_cli") / "assets" / "voice"))
    files = [path for path in folder.rglob("*") if path.is_file()] if folder.is_dir() else []
    if not files:
        return {"error": "missing from this installation; name a model with --model"}
    size = round(sum(path.stat().st_size for path in files) / 1e6, 1)
    card = folder / "README.md"
    return {"folder": str(folder), "mb": size, "card": str(card) if card.exists() else "none"}


def _user() -> dict[str, Any]:
    """Folders, saved voices and settings of the user."""
    from csm_cli.settings import read_configuration
    from csm_cli.voices.store import list_voices, voices_folder

    user: dict[str, Any] = {"voices": str(voices_folder())}
    try:
        user["saved"] = [voice.name for voice in list_voices() if not voice.bundled]
        user["config"] = str(user_config_file())
        user["settings"] = [f"{name} from {value.source}" for name, value in read_configuration().merged.items()]
    except CsmError as error:
        user["error"] = str(error)
    return user


def _hub() -> dict[str, Any]:
    try:
        from huggingface_hub import constants, get_token
    except Exception as error:
        return {"error": f"huggingface_hub cannot be imported: {error}"}
    return {
        "cache": str(constants.HF_HUB_CACHE),
        "token": "present" if get_token() else "absent",
        "offline": bool(constants.HF_HUB_OFFLINE),
    }
