"""Listen to a voice under training: sample held-out sentences with transformers' own `generate`, and plot."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from csm_cli.recipe.acoustic_distance import retrieval
from csm_cli.recipe.corpus import FRAME, RATE, render_voice
from csm_cli.recipe.tokenizer import text_ids

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from transformers import CsmForConditionalGeneration

    from csm_cli.recipe.espeak import Espeak


@dataclass(frozen=True)
class PreviewSample:
    """A sampled sentence beside espeak-ng's: float32 samples at 24 kHz, frames, and whether speech ended by itself."""

    text: str
    audio: NDArray[np.float32]
    reference: NDArray[np.float32]
    ended: bool

    @property
    def ratio(self) -> float:
        """Length over espeak-ng's."""
        return len(self.audio) / len(self.reference)


@torch.no_grad()
def sample_sentences(model: CsmForConditionalGeneration, espeak: Espeak, texts: Sequence[str]) -> list[PreviewSample]:
    """Each text once, as speaker 0 without context, with the model's own generation config."""
    torch.manual_seed(0)
    samples = []
    for text in texts:
        ids = torch.tensor([text_ids(0, text)], device=model.device)
        codes = model.generate(input_ids=ids)[0]  # [T, K]
        ends = (codes[:, :-1] == 0).all(dim=-1).nonzero()
        length = int(ends[0]) if len(ends) else len(codes)
        _, spoken = render_voice(espeak, text, 0)
        audio = np.zeros(FRAME, np.float32)
        if length:
            audio = model.codec_model.decode(codes[None, :length].transpose(1, 2)).audio_values[0, 0].cpu().numpy()
        samples.append(PreviewSample(text, audio, spoken.astype(np.float32) / np.float32(32768), bool(len(ends))))
    return samples


def summary(samples: Sequence[PreviewSample]) -> dict[str, object]:
    """Ended by itself, length in bounds, retrieval among these sentences."""
    clean = [sample.ended and 0.7 <= sample.ratio <= 1.4 for sample in samples]
    return {
        "ended": sum(sample.ended for sample in samples) / len(samples),
        "clean_stop": sum(clean) / len(samples),
        "retrieval": retrieval([s.audio for s in samples], [s.reference for s in samples]),
        "ratios": [round(sample.ratio, 2) for sample in samples],
    }


def save_samples(samples: Sequence[PreviewSample], folder: Path) -> None:
    """WAV files, one after another, and a picture of the first three beside espeak-ng's."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(samples):
        soundfile.write(folder / f"{index:02}.wav", sample.audio, RATE)
    plot_samples(samples[:3], folder / "samples.png")
    (folder / "texts.json").write_text(json.dumps([sample.text for sample in samples], indent=1))


def plot_samples(samples: Sequence[PreviewSample], path: Path) -> None:
    """Waveform and spectrogram of each sample (left) and of espeak-ng's rendering (right)."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6 * len(samples)), layout="constrained")
    axes = figure.subplots(2 * len(samples), 2, squeeze=False)
    for row, sample in enumerate(samples):
        for column, (name, audio) in enumerate((("voice", sample.audio), ("espeak-ng", sample.reference))):
            wave, spectrum = axes[2 * row, column], axes[2 * row + 1, column]
            wave.plot(np.arange(len(audio)) / RATE, audio, linewidth=0.4)
            wave.set(title=f"{name}: {sample.text}", ylim=(-1, 1), xlim=(0, len(audio) / RATE))
            spectrum.specgram(
                audio + 1e-5 * np.random.default_rng(0).standard_normal(len(audio)),
                NFFT=512,
                Fs=RATE,
                noverlap=384,
                vmin=-140,
                vmax=-30,
            )
            spectrum.set(ylim=(0, 8000), ylabel="Hz")
    figure.savefig(path, dpi=60)
