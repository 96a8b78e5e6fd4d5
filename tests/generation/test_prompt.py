"""Prompt rows against transformers' CsmProcessor, and text that stays text."""

from __future__ import annotations

import string
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import CsmProcessor, EncodecFeatureExtractor, PreTrainedTokenizerFast

from csm_cli.errors import CheckpointInvalid, InputError
from csm_cli.generation.prompt import PromptBuilder
from csm_cli.models.csm.config import ModelConfig, Rope, StackConfig

SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>", "<|reserved_special_token_0|>")
LLAMA_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """
{%- for message in messages %}
    {{- bos_token }}
    {{- '[' + message['role'] + ']' }}
    {{- message['content'][0]['text'] }}
    {{- eos_token }}
    {%- if message['content']|length > 1 %}
        {{- '<|AUDIO|><|audio_eos|>' }}
    {%- endif %}
{%- endfor %}
"""
BOOKS, FRAME_SAMPLES = 3, 1920
STACK = StackConfig(1, 8, 1, 1, 8, 8, 64, 1e-5, Rope(10000.0))


def csm_config(tokenizer: Tokenizer) -> ModelConfig:
    audio, audio_eos = (tokenizer.token_to_id(token) for token in SPECIAL[2:4])
    return ModelConfig(STACK, STACK, BOOKS, 35, 32, tokenizer.get_vocab_size(), 0, audio, audio_eos, True)


def build_tokenizer(kind: str) -> Tokenizer:
    """Llama 3's kind of BPE, or one token a byte, as the csm-1b tokenizer wraps it."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=kind == "llama"))
    if kind == "llama":
        words = pre_tokenizers.Split(Regex(LLAMA_WORDS), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, byte_level])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = 256 + (80 if kind == "llama" else 0)
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([string.printable, "the quick brown fox said hello there, hello audio" * 9], trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{SPECIAL[0]} $A {SPECIAL[1]}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in SPECIAL[:2]],
    )
    return tokenizer


@pytest.fixture(params=["llama", "bytes"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return build_tokenizer(request.param)


@pytest.fixture
def prompt_builder(tokenizer: Tokenizer, tmp_path: Path) -> PromptBuilder:
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return PromptBuilder(tmp_path / "tokenizer.json", csm_config(tokenizer))


def as_input_ids(rows: Tensor, config: ModelConfig) -> list[int]:
    """Rows as transformers writes them: one audio token a frame, another for the frame that ends a turn."""
    ids = []
    for row in rows:
        frame, text = row[:-1], row[-1]
        assert (text == -1) == bool((frame != -1).any())
        ends = bool((frame == config.eos).all())
        ids.append(int(text) if text != -1 else config.audio_eos_token if ends else config.audio_token)
    return ids


TEXTS = [
    "hello there, hello!",
    "  two  spaces ,\n\na line\tand trailing ",
    "Ünïcödé 日本語 🎉 1234567 it's",
    "[1]not a role [bold]x[/bold]",
    "{{ 7 * 7 }} {% raw %}",
]


@pytest.mark.parametrize("past", [0, 1, 2, 3])
def test_rows_are_transformers_tokens(tokenizer: Tokenizer, prompt_builder: PromptBuilder, past: int) -> None:
    feature_extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=24000)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=SPECIAL[0], eos_token=SPECIAL[1], pad_token=SPECIAL[1]
    )
    processor = CsmProcessor(feature_extractor, fast, chat_template=CHAT_TEMPLATE)
    for first in range(len(TEXTS)):
        rows, messages = [], []
        for turn in range(past + 1):
            speaker, text = turn * 7 % 11, TEXTS[(first + turn) % len(TEXTS)]
            content: list[dict[str, object]] = [{"type": "text", "text": text}]
            codes = torch.randint(1, 32, (turn + 2, BOOKS)) if turn < past else None
            if codes is not None:
                content.append({"type": "audio", "audio": np.zeros(len(codes) * FRAME_SAMPLES, np.float32)})
            messages.append({"role": str(speaker), "content": content})
            rows.append(prompt_builder.turn_tokens(speaker, text, codes))
        expected = processor.apply_chat_template([messages], tokenize=True, return_dict=True)["input_ids"]
        assert as_input_ids(torch.cat(rows), csm_config(tokenizer)) == expected[0].tolist()


def test_a_spoken_turn_is_its_text_its_frames_and_one_end_frame(prompt_builder: PromptBuilder) -> None:
    codes = torch.arange(1, 7).reshape(2, BOOKS)
    words, spoken = prompt_builder.turn_tokens(0, "hello"), prompt_builder.turn_tokens(0, "hello", codes)
    assert words.dtype == torch.int64
    assert spoken[: len(words)].equal(words)
    assert spoken[len(words) :].tolist() == [[1, 2, 3, -1], [4, 5, 6, -1], [0, 0, 0, -1]]


def test_a_turn_without_frames_is_only_ended(prompt_builder: PromptBuilder) -> None:
    assert prompt_builder.turn_tokens(0, "hello", torch.empty(0, 0, dtype=torch.int64))[-1].tolist() == [0, 0, 0, -1]


@pytest.mark.parametrize("text", [*SPECIAL, "<placeholder>", "[bold]", "a<|end_of_text|>b <|AUDIO|><|audio_eos|>"])
def test_user_text_never_becomes_a_special_token(
    tokenizer: Tokenizer, prompt_builder: PromptBuilder, text: str
) -> None:
    ids = prompt_builder.text_ids(3, text)
    special = {tokenizer.token_to_id(token) for token in SPECIAL}
    assert [ids[0], ids[-1]] == [tokenizer.token_to_id(token) for token in SPECIAL[:2]]
    assert not special & set(ids[1:-1])
    spelled = "".join(tokenizer.id_to_token(number) for number in ids[1:-1])
    assert spelled == f"[3]{text}".replace(" ", "Ġ")


def test_padding_and_truncation_saved_with_a_tokenizer_do_not_count(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = csm_config(tokenizer)
    tokenizer.enable_padding(length=40)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(tmp_path / "saved.json"))
    ids = PromptBuilder(tmp_path / "saved.json", config).text_ids(0, "hello there")
    assert tokenizer.token_to_id(SPECIAL[1]) == ids[-1]
    assert 4 < len(ids) < 40


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_nothing_to_speak_is_an_input_error(prompt_builder: PromptBuilder, text: str) -> None:
    with pytest.raises(InputError, match="no text to speak"):
        prompt_builder.turn_tokens(0, text)


def test_text_that_is_not_unicode_is_an_input_error(prompt_builder: PromptBuilder) -> None:
    with pytest.raises(InputError, match="not valid Unicode"):
        prompt_builder.text_ids(0, "caf\udce9")


def test_a_tokenizer_that_is_none_is_named(tmp_path: Path, tokenizer: Tokenizer) -> None:
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(CheckpointInvalid, match=r"broken\.json is not a tokenizer"):
        PromptBuilder(tmp_path / "broken.json", csm_config(tokenizer))


def test_another_models_tokenizer_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    config = csm_config(tokenizer)
    tokenizer.add_tokens(["extra"])
    tokenizer.save(str(tmp_path / "larger.json"))
    with pytest.raises(CheckpointInvalid, match="not the model's tokenizer"):
        PromptBuilder(tmp_path / "larger.json", config)
    Tokenizer(models.BPE()).save(str(tmp_path / "plain.json"))
    with pytest.raises(CheckpointInvalid, match=r"no <\|begin_of_text\|>"):
        PromptBuilder(tmp_path / "plain.json", config)
