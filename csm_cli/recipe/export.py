"""Stage "export": the voice as a checkpoint folder for transformers' `from_pretrained`, and previews of its speech.

Weights are float16 with `dtype: float32` in the config; `tie_word_embeddings` is written as false, which every
transformers from 5.20 accepts.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from csm_cli.recipe.codes import BEGIN, END, text_ids
from csm_cli.recipe.corpus import FRAME, RATE, render_voice
from csm_cli.recipe.measure import retrieval
from csm_cli.recipe.model import codebook_size
from csm_cli.storage.files import MARKER
from csm_cli.storage.folders import replace_folder

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray
    from torch import Tensor
    from transformers import CsmConfig, CsmForConditionalGeneration, PreTrainedTokenizerFast

    from csm_cli.recipe.corpus import Espeak
    from csm_cli.recipe.plan import SamplingPlan

_TIED = "depth_decoder.model.embed_tokens.weight"
_STORED = "backbone_model.embed_tokens.embed_audio_tokens.weight"
_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>")
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|begin_of_text|>[' + message['role'] + ']' -}}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{{- '<|end_of_text|>' -}}
{%- for part in message['content'] if part['type'] == 'audio' -%}{{- '<|AUDIO|><|audio_eos|>' -}}{%- endfor -%}
{%- endfor -%}
"""


def export_voice(model: CsmForConditionalGeneration, sampling: SamplingPlan, folder: Path) -> None:
    """Writes the checkpoint beside `folder` and swaps it in; other files in `folder` remain."""
    with replace_folder(folder, "checkpoint", force=True) as fresh:
        if folder.exists():
            shutil.copytree(folder, fresh, dirs_exist_ok=True, ignore=shutil.ignore_patterns(MARKER))
        model.save_pretrained(fresh, state_dict=stored_weights(model))  # names on disk differ from those in memory
        (fresh / "model.safetensors").chmod(0o644)
        _write_json(fresh / "config.json", stored_config(model))
        _write_json(fresh / "generation_config.json", generation_config(sampling, model.config))
        save_processor(fresh)


def stored_weights(model: CsmForConditionalGeneration) -> dict[str, Tensor]:
    """float16 weights under transformers' names; the tied audio embedding is stored once.

    Raises:
        ValueError: weights beyond float16's range.
    """
    state = {name: tensor for name, tensor in model.state_dict().items() if name != _TIED}
    assert _STORED in state
    half = {
        name: tensor.half() if tensor.is_floating_point() else tensor
        for name, tensor in ((name, tensor.detach().cpu().contiguous()) for name, tensor in state.items())
    }
    broken = [name for name, tensor in half.items() if not torch.isfinite(tensor.float()).all()]
    if broken:
        raise ValueError(f"weights beyond float16: {', '.join(broken)}")
    return half


def stored_config(model: CsmForConditionalGeneration) -> dict[str, Any]:
    """The model's config without transformers' private keys."""
    config: dict[str, Any] = _public(model.config.to_dict())
    config.update(architectures=["CsmForConditionalGeneration"], dtype="float32", tie_word_embeddings=False)
    return config


def generation_config(sampling: SamplingPlan, config: CsmConfig) -> dict[str, Any]:
    """Sampling defaults of the backbone and the depth decoder; special codes are never sampled."""
    special = list(range(codebook_size(config), config.vocab_size))
    common = {"do_sample": True, "suppress_tokens": special}
    depth = {
        **common,
        "temperature": sampling.depth_temperature,
        "top_k": sampling.depth_top_k,
        "max_new_tokens": config.num_codebooks - 1,
        "min_new_tokens": config.num_codebooks - 1,
    }
    return {
        **common,
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "max_new_tokens": sampling.max_frames,
        **{f"depth_decoder_{name}": value for name, value in depth.items()},
        **({"csm_memory": sampling.memory} if sampling.memory else {}),
    }


def _public(config: dict[str, Any]) -> dict[str, Any]:
    nested = {name: _public(value) if isinstance(value, dict) else value for name, value in config.items()}
    return {name: value for name, value in nested.items() if not str(name).startswith("_")}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer; a post-processor puts `<|begin_of_text|>` and `<|end_of_text|>` around each text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE(vocab={char: byte for byte, char in _byte_characters().items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in _SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_SPECIAL[0]} $A {_SPECIAL[1]}",
        pair=f"{_SPECIAL[0]} $A {_SPECIAL[1]} {_SPECIAL[0]} $B {_SPECIAL[1]}",
        special_tokens=[(_SPECIAL[0], BEGIN), (_SPECIAL[1], END)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=_SPECIAL[0],
        eos_token=_SPECIAL[1],
        pad_token=_SPECIAL[1],
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def save_processor(folder: Path) -> None:
    """Writes tokenizer, feature extractor and chat template into a checkpoint folder, as CsmProcessor reads them."""
    from transformers import CsmProcessor, EncodecFeatureExtractor

    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=24_000)
    CsmProcessor(extractor, build_tokenizer(), chat_template=CHAT_TEMPLATE).save_pretrained(folder)


def _byte_characters() -> dict[int, str]:
    """The printable character for each byte in byte-level tokenizers (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in table)
    table.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    return table


@dataclass(frozen=True)
class PreviewSample:
    """A generated sentence beside espeak-ng's: float32 samples at 24 kHz. ended: by the end frame, not the limit."""

    text: str
    audio: NDArray[np.float32]
    reference: NDArray[np.float32]
    ended: bool

    @property
    def ratio(self) -> float:
        """Length as a ratio of espeak-ng's."""
        return len(self.audio) / len(self.reference)


@torch.no_grad()
def sample_sentences(model: CsmForConditionalGeneration, espeak: Espeak, texts: Sequence[str]) -> list[PreviewSample]:
    """Generates each text once with transformers, as speaker 0 without context, with the model's defaults."""
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
    """Writes WAV files, their texts, and a plot of the first three beside espeak-ng's."""
    import soundfile

    folder.mkdir(parents=True, exist_ok=True)
    for index, sample in enumerate(samples):
        soundfile.write(folder / f"{index:02}.wav", sample.audio, RATE)
    plot_samples(samples[:3], folder / "samples.png")
    (folder / "texts.json").write_text(json.dumps([sample.text for sample in samples], indent=1))


def plot_samples(samples: Sequence[PreviewSample], path: Path) -> None:
    """Plots waveform and spectrogram of each sample (left) and of espeak-ng's rendering (right)."""
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
