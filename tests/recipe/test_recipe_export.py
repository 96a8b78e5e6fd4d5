"""An exported voice is a checkpoint that transformers reads directly."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers.voice_model import BACKBONE, CODEC, DEPTH
from safetensors.torch import load_file
from transformers import AutoProcessor, CsmForConditionalGeneration

from csm_cli.recipe.codec import build_codec
from csm_cli.recipe.codes import text_ids
from csm_cli.recipe.export import export_voice
from csm_cli.recipe.model import model_config
from csm_cli.recipe.plan import SamplingPlan
from csm_cli.recipe.quantizer import QuantizerTrainer


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[CsmForConditionalGeneration, Path]:
    torch.manual_seed(0)
    model = CsmForConditionalGeneration(model_config(BACKBONE, DEPTH, CODEC))
    model.codec_model = build_codec(CODEC)
    QuantizerTrainer(model.codec_model).start(torch.randn(600, 16), iterations=2)
    folder = tmp_path_factory.mktemp("voice") / "voice"
    export_voice(model, SamplingPlan(temperature=0.5, top_k=7, max_frames=4, memory=90), folder)
    return model, folder


def test_weights_are_float16(exported: tuple[CsmForConditionalGeneration, Path]) -> None:
    model, folder = exported
    loaded = CsmForConditionalGeneration.from_pretrained(folder)
    assert loaded.dtype == torch.float32
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor, rtol=1e-3, atol=1e-4)
    assert all(tensor.dtype != torch.float32 for tensor in load_file(folder / "model.safetensors").values())


def test_audio_embeddings_are_tied(exported: tuple[CsmForConditionalGeneration, Path]) -> None:
    state = CsmForConditionalGeneration.from_pretrained(exported[1]).state_dict()
    first = state["backbone_model.embed_tokens.embed_audio_tokens.weight"]
    assert torch.equal(first, state["depth_decoder.model.embed_tokens.weight"])


def test_config_and_default_sampling(exported: tuple[CsmForConditionalGeneration, Path]) -> None:
    config = json.loads((exported[1] / "config.json").read_text())
    assert (config["dtype"], config["tie_word_embeddings"]) == ("float32", False)
    generation = json.loads((exported[1] / "generation_config.json").read_text())
    assert (generation["temperature"], generation["top_k"], generation["max_new_tokens"]) == (0.5, 7, 4)
    assert generation["depth_decoder_max_new_tokens"] == 3 and generation["csm_memory"] == 90


def test_tokenizer_is_bytes_between_begin_and_end(exported: tuple[CsmForConditionalGeneration, Path]) -> None:
    tokenizer = AutoProcessor.from_pretrained(exported[1]).tokenizer
    text = "Zoë said: 12 œufs, <b> & 100 %!\n"
    assert tokenizer(f"[3]{text}", add_special_tokens=True).input_ids == text_ids(3, text)
    assert tokenizer.decode(text_ids(3, text), skip_special_tokens=True) == f"[3]{text}"


def test_the_processor_and_generate_work_with_context(exported: tuple[CsmForConditionalGeneration, Path]) -> None:
    processor = AutoProcessor.from_pretrained(exported[1])
    model = CsmForConditionalGeneration.from_pretrained(exported[1])
    audio = torch.zeros(1920 * 3).numpy()
    context = {"role": "0", "content": [{"type": "text", "text": "Hi."}, {"type": "audio", "path": audio}]}
    prompt = {"role": "1", "content": [{"type": "text", "text": "Yes?"}]}
    inputs = processor.apply_chat_template([context, prompt], tokenize=True, return_dict=True)
    assert inputs["input_ids"][0].tolist() == [*text_ids(0, "Hi."), 258, 258, 258, 259, *text_ids(1, "Yes?")]
    codes = model.generate(**inputs)
    assert codes.shape[0] == 1 and 1 <= codes.shape[1] <= 4 and codes.max() < 512


def test_exporting_again_leaves_other_files(exported: tuple[CsmForConditionalGeneration, Path], tmp_path: Path) -> None:
    model, _ = exported
    (tmp_path / "voice").mkdir()
    (tmp_path / "voice" / "README.md").write_text("card")
    export_voice(model, SamplingPlan(), tmp_path / "voice")
    assert (tmp_path / "voice" / "README.md").read_text() == "card"
    assert [path.name for path in tmp_path.iterdir()] == ["voice"]
