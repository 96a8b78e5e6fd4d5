"""The bundled voice's byte-level tokenizer and processor files, as transformers' CsmProcessor reads them.

Ids 0..255 are bytes; text is `<|begin_of_text|>[SPEAKER]TEXT<|end_of_text|>` by a template post-processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerFast

BEGIN, END, AUDIO, AUDIO_EOS = 256, 257, 258, 259
TEXT_VOCAB = 260
_SPECIAL = ("<|begin_of_text|>", "<|end_of_text|>", "<|AUDIO|>", "<|audio_eos|>")

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|begin_of_text|>[' + message['role'] + ']' -}}
{%- for part in message['content'] if part['type'] == 'text' -%}{{- part['text'] -}}{%- endfor -%}
{{- '<|end_of_text|>' -}}
{%- for part in message['content'] if part['type'] == 'audio' -%}{{- '<|AUDIO|><|audio_eos|>' -}}{%- endfor -%}
{%- endfor -%}
"""


def text_ids(speaker: int, text: str) -> list[int]:
    """The ids of one turn's text, specials included; the same as the tokenizer's."""
    return [BEGIN, *f"[{speaker}]{text}".encode(), END]


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer with one id for each byte."""
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
    """Write tokenizer, feature extractor and chat template into a checkpoint folder."""
    from transformers import CsmProcessor, EncodecFeatureExtractor

    extractor = EncodecFeatureExtractor(feature_size=1, sampling_rate=24_000)
    CsmProcessor(extractor, build_tokenizer(), chat_template=CHAT_TEMPLATE).save_pretrained(folder)


def _byte_characters() -> dict[int, str]:
    """The printable character that stands for each byte in byte-level tokenizers (GPT-2's table)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in table)
    table.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    return table
