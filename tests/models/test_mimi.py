from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import CsmConfig, CsmForConditionalGeneration, CsmProcessor, MimiConfig, MimiModel, PreTrainedModel

from csm_cli.checkpoint import open_checkpoint
from csm_cli.errors import CheckpointInvalid
from csm_cli.models.mimi import Codec, push_all
from csm_cli.models.mimi.config import codec_config

TINY = {
    "hidden_size": 32,
    "num_filters": 2,
    "codebook_size": 64,
    "codebook_dim": 16,
    "vector_quantization_hidden_dimension": 16,
    "num_quantizers": 4,
    "upsample_groups": 32,
    "num_hidden_layers": 2,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "upsampling_ratios": [4, 3],
    "layer_scale_initial_scale": 0.5,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "small frames": {"sliding_window": 20},
    "mimi's ratios": {"upsampling_ratios": [8, 6, 5, 4]},
    "three wide ratios": {"upsampling_ratios": [8, 10, 12], "num_residual_layers": 0},
    "deep residuals": {"num_residual_layers": 2, "compress": 1, "use_conv_shortcut": True, "kernel_size": 5},
    "grouped attention": {"num_key_value_heads": 2, "head_dim": 6, "rope_parameters": {"rope_theta": 500.0}},
    "no projection": {"codebook_dim": 32, "vector_quantization_hidden_dimension": 32, "num_semantic_quantizers": 2},
    "a hop with no small part": {"upsampling_ratios": [13], "num_residual_layers": 0},
    "nothing carried": {"last_kernel_size": 1, "sliding_window": 1, "residual_kernel_size": 1},
    "a long last kernel": {"last_kernel_size": 14, "upsampling_ratios": [3, 5]},
    "no transformer": {"num_hidden_layers": 0},
    "longer stride": {"frame_rate": 500.0, "upsample_groups": 8},
}


Weights = dict[str, Tensor]


@dataclass(frozen=True)
class Pair:
    """A codec, and the transformers model, config and tensors it was loaded from."""

    codec: Codec
    mimi: MimiModel
    config: dict[str, Any]
    weights: Weights


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Pair]:
    made: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in made:
            made[name] = make_pair(tmp_path_factory.mktemp("mimi"), VARIANTS[name])
        return made[name]

    return get


def make_pair(folder: Path, changes: dict[str, Any]) -> Pair:
    torch.manual_seed(1)
    mimi = MimiModel(MimiConfig(**{**TINY, **changes})).eval()
    randomize_codebooks(mimi)
    config, weights = saved(mimi, folder)
    return Pair(Codec.load(config, weights), mimi, config, weights)


def randomize_codebooks(model: PreTrainedModel) -> None:
    torch.manual_seed(1)
    for name, tensor in model.named_buffers():
        if name.endswith("embed_sum"):
            tensor.normal_()
            tensor[0] *= 1e-5
        if name.endswith("cluster_usage"):
            tensor.uniform_(0.5, 2.0)
            tensor[0] = 0.0  # below the clamp, which makes the entry an ordinary one


def saved(model: PreTrainedModel, folder: Path) -> tuple[dict[str, Any], Weights]:
    model.save_pretrained(folder)
    return json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")


def random_codes(codec: Codec, frames: int) -> Tensor:
    generator = torch.Generator().manual_seed(frames)
    return torch.randint(codec.config.codebook_size, (frames, codec.codebooks), generator=generator)


def noise(samples: int) -> Tensor:
    return torch.randn(samples, generator=torch.Generator().manual_seed(samples)) * 0.3


def decoded_by_transformers(mimi: MimiModel, codes: Tensor) -> Tensor:
    with torch.no_grad():
        return mimi.decode(codes.T[None]).audio_values[0, 0]


def encoded_by_transformers(mimi: MimiModel, samples: Tensor) -> Tensor:
    with torch.no_grad():
        return mimi.encode(samples[None, None]).audio_codes[0].T


def loudest_difference(ours: Tensor, theirs: Tensor) -> float:
    """As a part of full scale: random weights are loud."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1.0))


@pytest.mark.parametrize("name", VARIANTS)
def test_decoding_equals_transformers(pair: Callable[[str], Pair], name: str) -> None:
    codec, mimi = pair(name).codec, pair(name).mimi
    codes = random_codes(codec, 60)
    theirs = decoded_by_transformers(mimi, codes)
    assert theirs.abs().max() > 0.01
    assert loudest_difference(codec.decode(codes), theirs) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_encoding_equals_transformers(pair: Callable[[str], Pair], name: str) -> None:
    codec, mimi = pair(name).codec, pair(name).mimi
    samples = noise(61 * codec.frame_samples + 5)
    codes = codec.encode(samples)
    assert len(codes.unique()) > 10
    assert torch.equal(codes, encoded_by_transformers(mimi, samples))


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 50])
def test_chunked_decoding_equals_whole_decoding(pair: Callable[[str], Pair], chunk: int) -> None:
    codec, mimi = pair("small frames").codec, pair("small frames").mimi
    codes = random_codes(codec, 120)
    decoder = codec.decoder()
    samples = torch.cat([decoder.push(piece) for piece in codes.split(chunk)])
    assert loudest_difference(samples, codec.decode(codes)) < 1e-5
    assert loudest_difference(samples, decoded_by_transformers(mimi, codes)) < 1e-5


@pytest.mark.parametrize("name", VARIANTS)
def test_batched_rows_are_bit_identical(pair: Callable[[str], Pair], name: str) -> None:
    codec, mimi = pair(name).codec, pair(name).mimi
    spoken = [random_codes(codec, frames) for frames in (26, 25, 24)]
    decoders, others = [codec.decoder() for _ in spoken], [codec.decoder() for _ in spoken]
    heard: list[list[Tensor]] = [[] for _ in spoken]
    for start, end in pairwise((0, 1, 3, 3, 10, 11, 24)):
        chunks = [codes[start:end] for codes in spoken]
        for row, samples in enumerate(push_all(decoders, chunks)):
            assert torch.equal(samples, others[row].push(chunks[row]))
            heard[row].append(samples)
    for codes, parts in zip(spoken, heard, strict=True):
        assert loudest_difference(torch.cat(parts), decoded_by_transformers(mimi, codes[:24])) < 1e-5


def test_decoding_past_the_attention_window(tmp_path: Path) -> None:
    made = make_pair(tmp_path, {"sliding_window": 250})
    codes = random_codes(made.codec, 300)
    decoder = made.codec.decoder()
    samples = torch.cat([decoder.push(piece) for piece in codes.split(7)])
    assert loudest_difference(samples, decoded_by_transformers(made.mimi, codes)) < 1e-5


def test_decoders_of_one_codec_are_independent(pair: Callable[[str], Pair]) -> None:
    codec = pair("small frames").codec
    first, second = random_codes(codec, 9), random_codes(codec, 12)[:9]
    one, two = codec.decoder(), codec.decoder()
    rounds = [(one.push(a), two.push(b)) for a, b in zip(first.split(3), second.split(3), strict=True)]
    assert loudest_difference(torch.cat([a for a, _ in rounds]), codec.decode(first)) < 1e-5
    assert loudest_difference(torch.cat([b for _, b in rounds]), codec.decode(second)) < 1e-5


def test_rows_of_any_age_and_length_are_batched(pair: Callable[[str], Pair]) -> None:
    """Each row as if it were alone: some begin while others go on, and one has nothing to say at times."""
    codec = pair("small frames").codec
    spoken = [random_codes(codec, frames) for frames in (90, 60, 40, 75)]
    decoders, heard, at = [codec.decoder() for _ in spoken], [[] for _ in spoken], [0, -12, -30, -5]
    for turn in range(20):
        chunks = []
        for row, codes in enumerate(spoken):
            step = 12 if turn % 5 or row != 1 else 5
            chunks.append(codes[max(0, at[row]) : max(0, at[row] + step)])
            at[row] += step
        for row, samples in enumerate(push_all(decoders, chunks)):
            heard[row].append(samples)
    for codes, parts in zip(spoken, heard, strict=True):
        assert loudest_difference(torch.cat(parts), codec.decode(codes)) < 1e-5


def test_new_rows_beside_running_ones_are_bit_identical() -> None:
    """The bundled codec; row n begins n rounds later than the first."""
    checkpoint = open_checkpoint()
    codec = Codec.load(checkpoint.codec_config, checkpoint.codec_weights, codebooks=checkpoint.config.codebooks)
    spoken = [random_codes(codec, 12 + row) for row in range(4)]
    decoders, others = [codec.decoder() for _ in spoken], [codec.decoder() for _ in spoken]
    for turn in range(6):
        chunks = [codes[max(0, turn - row) * 4 :][: 4 * (turn >= row)] for row, codes in enumerate(spoken)]
        for row, samples in enumerate(push_all(decoders, chunks)):
            assert torch.equal(samples, others[row].push(chunks[row]))


def test_many_rows_are_decoded_in_several_batches(pair: Callable[[str], Pair]) -> None:
    codec = pair("mimi's ratios").codec
    spoken = [random_codes(codec, 20) for _ in range(7)]
    for codes, samples in zip(spoken, push_all([codec.decoder() for _ in spoken], spoken), strict=True):
        assert loudest_difference(samples, codec.decode(codes)) < 1e-5


def test_invalid_row_leaves_the_others_unchanged(pair: Callable[[str], Pair]) -> None:
    codec = pair("small frames").codec
    decoders, codes = [codec.decoder(), codec.decoder()], random_codes(codec, 5)
    with pytest.raises(ValueError, match="frame 0, codebook 0"):
        push_all(decoders, [codes, codes - 100])
    assert loudest_difference(decoders[0].push(codes), codec.decode(codes)) < 1e-5


def test_no_frames_give_no_samples(pair: Callable[[str], Pair]) -> None:
    codec = pair("small frames").codec
    assert codec.decode(random_codes(codec, 0)).shape == (0,)


@pytest.mark.parametrize("extra", [-1, 0, 1])
@pytest.mark.parametrize("frames", [1, 2, 51])
def test_frame_count_equals_csm_processor(pair: Callable[[str], Pair], frames: int, extra: int) -> None:
    codec, mimi = pair("mimi's ratios").codec, pair("mimi's ratios").mimi
    samples = noise(frames * 1920 + extra)
    codes = codec.encode(samples)
    strides = {"kernel_sizes": [7, 3, 1, 8, 3, 1, 10, 3, 1, 12, 3, 1, 16, 3, 4]}
    strides["strides"] = [1, 1, 1, 4, 1, 1, 5, 1, 1, 6, 1, 1, 8, 1, 2]
    strides["dilations"] = [1] * len(strides["strides"])
    assert len(codes) == CsmProcessor._get_encoded_length(len(samples), **strides, use_causal_conv=True)
    assert torch.equal(codes, encoded_by_transformers(mimi, samples))


def test_any_length_can_be_encoded(pair: Callable[[str], Pair]) -> None:
    codec, mimi = pair("small frames").codec, pair("small frames").mimi
    for length in [1, 2, 3, 11, 12, 13, 23, 25]:
        assert torch.equal(codec.encode(noise(length)), encoded_by_transformers(mimi, noise(length)))


def test_fewer_codebooks_are_a_prefix(pair: Callable[[str], Pair]) -> None:
    made = pair("no projection")
    for codebooks in [1, 2, 3]:
        codec = Codec.load(made.config, made.weights, codebooks=codebooks)
        samples = noise(10 * codec.frame_samples)
        codes = codec.encode(samples)
        assert torch.equal(codes, made.codec.encode(samples)[:, :codebooks])
        assert loudest_difference(codec.decode(codes), decoded_by_transformers(made.mimi, codes)) < 1e-5


def test_codec_of_a_saved_csm_is_loaded(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    shape = {**sizes, "num_key_value_heads": 2, "num_codebooks": 4, "vocab_size": 67}
    depth = {**shape, "backbone_hidden_size": 16}
    codec = {**TINY, "model_type": "mimi"}
    csm = CsmForConditionalGeneration(
        CsmConfig(**shape, text_vocab_size=50, depth_decoder_config=depth, codec_config=codec)
    ).eval()
    randomize_codebooks(csm)
    config, tensors = saved(csm, tmp_path)
    prefix = "codec_model."
    weights = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    ours = Codec.load(config["codec_config"], weights, codebooks=4)
    codes = random_codes(ours, 20)
    assert loudest_difference(ours.decode(codes), decoded_by_transformers(csm.codec_model, codes)) < 1e-5


def test_decoding_does_not_touch_encoder_weights(pair: Callable[[str], Pair]) -> None:
    made = pair("small frames")
    codec = Codec.load(made.config, made.weights)
    name = "encoder_transformer.layers.0.mlp.fc1.weight"
    codec.decode(random_codes(codec, 3))
    assert codec.network.get_parameter(name).data_ptr() == made.weights[name].data_ptr()
    codec.encode(noise(100))
    assert codec.network.get_parameter(name).data_ptr() != made.weights[name].data_ptr()
    assert torch.equal(codec.network.get_parameter(name), made.weights[name])


def test_computes_in_float32_for_any_checkpoint_dtype(pair: Callable[[str], Pair]) -> None:
    made = pair("small frames")
    codec = Codec.load(made.config, {name: tensor.bfloat16() for name, tensor in made.weights.items()})
    assert codec.decode(random_codes(codec, 3)).dtype == torch.float32


def test_rates_come_from_the_config(pair: Callable[[str], Pair]) -> None:
    codec = pair("three wide ratios").codec
    assert (codec.rate, codec.frame_samples, codec.frame_rate, codec.codebooks) == (24000, 1920, 12.5, 4)
    assert pair("longer stride").codec.frame_samples == 12 * 4


def test_missing_keys_have_mimis_defaults() -> None:
    assert codec_config({}) == codec_config(json.loads(MimiConfig().to_json_string(use_diff=False)))


@pytest.mark.parametrize(
    ("frame", "codebook", "value"), [(0, 0, 64), (4, 3, 2050), (2, 1, -1)], ids=["first", "special id", "negative"]
)
def test_invalid_code_is_located(pair: Callable[[str], Pair], frame: int, codebook: int, value: int) -> None:
    codec = pair("small frames").codec
    decoder = codec.decoder()
    decoder.push(random_codes(codec, 10))
    codes = random_codes(codec, 5)
    codes[frame, codebook] = value
    with pytest.raises(ValueError, match=f"frame {10 + frame}, codebook {codebook} holds {value}"):
        decoder.push(codes)


def test_other_shapes_are_refused(pair: Callable[[str], Pair]) -> None:
    codec = pair("small frames").codec
    with pytest.raises(ValueError, match=r"\[T, 4\]"):
        codec.decode(torch.zeros(5, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="N > 0"):
        codec.encode(torch.zeros(0))


def test_too_many_codebooks_are_refused(pair: Callable[[str], Pair]) -> None:
    made = pair("small frames")
    with pytest.raises(CheckpointInvalid, match="5 codebooks, but its codec holds 4"):
        Codec.load(made.config, made.weights, codebooks=5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_causal_conv", False),
        ("trim_right_ratio", 0.5),
        ("pad_mode", "reflect"),
        ("audio_channels", 2),
        ("hidden_act", "relu"),
        ("attention_bias", True),
        ("rope_parameters", {"rope_type": "llama3"}),
        ("upsampling_ratios", [4, "3"]),
        ("frame_rate", 5000.0),
        ("hidden_size", 33),
        ("hidden_size", "32"),
        ("num_quantizers", 0),
        ("num_semantic_quantizers", 4),
        ("codebook_dim", 8),
    ],
)
def test_other_codec_configs_are_refused(pair: Callable[[str], Pair], key: str, value: object) -> None:
    made = pair("small frames")
    with pytest.raises(CheckpointInvalid, match=r"^codec_config[^\n]+$"):
        Codec.load({**made.config, key: value}, made.weights)


def damaged(weights: Weights, how: str) -> Weights:
    name = "decoder.layers.2.conv.weight"
    book = "quantizer.acoustic_residual_vector_quantizer.layers.0.codebook.cluster_usage"
    match how:
        case "missing":
            return {key: value for key, value in weights.items() if key != name}
        case "unexpected":
            return {**weights, "decoder.layers.99.conv.weight": torch.zeros(1)}
        case "misshapen":
            return {**weights, name: weights[name][..., :-1]}
        case _:
            return {**weights, book: weights[book][:-1]}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "lacks tensor decoder.layers.2.conv.weight"),
        ("unexpected", "unexpected tensor decoder.layers.99"),
        ("misshapen", "decoder.layers.2.conv.weight is"),
        ("codebook", "sums"),
    ],
)
def test_wrong_tensors_are_named(pair: Callable[[str], Pair], how: str, message: str) -> None:
    made = pair("small frames")
    with pytest.raises(CheckpointInvalid, match=message):
        Codec.load(made.config, damaged(made.weights, how))


def test_fingerprint_covers_the_encoder(tiny_checkpoint: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_checkpoint))
    weights = dict(checkpoint.codec_weights)

    def mark(changed: str = "", codebooks: int = 8) -> str:
        new = {name: tensor * (1.5 if changed and name.startswith(changed) else 1) for name, tensor in weights.items()}
        return Codec.load(checkpoint.codec_config, new, codebooks=codebooks).fingerprint

    assert mark() == mark() == mark("decoder.") == mark("upsample.")
    assert len({mark(), mark("encoder."), mark("quantizer."), mark("downsample."), mark(codebooks=4)}) == 5


def test_batched_encoding_equals_single_encoding(pair: Callable[[str], Pair]) -> None:
    codec = pair("mimi's ratios").codec
    clips = [noise(frames * codec.frame_samples) for frames in (3, 60, 1, 17)]
    for clip, codes in zip(clips, codec.encode_batch(clips), strict=True):
        assert torch.equal(codes, codec.encode(clip))


@pytest.mark.parametrize("shape", [(0,), (2, 1920), (1921,)])
def test_batched_encoding_needs_whole_frames(pair: Callable[[str], Pair], shape: tuple[int, ...]) -> None:
    codec = pair("mimi's ratios").codec
    with pytest.raises(ValueError, match=r"expected samples \[T \* 1920\]"):
        codec.encode_batch([torch.zeros(1920), torch.zeros(shape)])
