"""Turns to prompt rows, token for token what transformers' CsmProcessor makes of the same conversation.

A turn is `<|begin_of_text|>[SPEAKER]TEXT<|end_of_text|>`; its audio's frames and one frame of
end codes follow. Unlike there, text is data: what looks like a special token in it is spelled out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from csm_cli.errors import CheckpointInvalid, InputError

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from csm_cli.models.csm.config import ModelConfig

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
UNUSED = -1


class PromptBuilder:
    """Makes prompt rows [S, K+1], int64: columns 0..K-1 a frame's codes, column K a text id, -1 where unused."""

    def __init__(self, tokenizer_file: Path, config: ModelConfig) -> None:
        """Raises CheckpointInvalid where the tokenizer cannot be read or is not the model's."""
        self._config = config
        self._tokenizer = _load(tokenizer_file)
        self._begin, self._end = (_special(self._tokenizer, token, tokenizer_file) for token in (BEGIN, END))
        size = self._tokenizer.get_vocab_size(with_added_tokens=True)
        if size > config.text_vocab:
            raise CheckpointInvalid(f"{tokenizer_file} has {size} tokens, the model {config.text_vocab}: not its own")

    def text_ids(self, speaker: int, text: str) -> list[int]:
        """The ids of one turn's text, as written, between begin and end of text.

        Raises:
            InputError: nothing to say, or characters that are not Unicode text.
        """
        if not text.strip():
            raise InputError("there is no text to speak")
        try:
            encoding = self._tokenizer.encode(f"[{speaker}]{text}", add_special_tokens=False)
        except (TypeError, UnicodeError) as problem:  # a lone surrogate, from bytes that are not UTF-8
            raise InputError(f"the text is not valid Unicode: {text!r}") from problem
        return [self._begin, *encoding.ids, self._end]

    def turn_tokens(self, speaker: int, text: str, codes: Tensor | None = None) -> Tensor:
        """The rows of one turn [S, K+1]; with `codes` [T, K] a turn that was spoken, else one to be spoken.

        Raises:
            InputError: a text that cannot be spoken, codes the model does not have.
        """
        import torch

        ids = torch.tensor(self.text_ids(speaker, text))
        books = self._config.codebooks
        words = torch.full((len(ids), books + 1), UNUSED)
        words[:, books] = ids
        return words if codes is None else torch.cat([words, self._frame_rows(codes)])

    def _frame_rows(self, codes: Tensor) -> Tensor:
        """The rows of a turn's frames and of the frame that ends it, [T + 1, K+1]."""
        import torch

        books, vocab = self._config.codebooks, self._config.vocab
        low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
        if low < 0 or high >= vocab:
            raise InputError(f"codes from {low} to {high}, the model's end at {vocab - 1}; encode the sound again")
        rows = torch.full((len(codes) + 1, books + 1), UNUSED)
        rows[:-1, :-1] = codes.reshape(len(codes), books)
        rows[-1, :-1] = self._config.eos
        return rows


def _load(file: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as problem:  # the library raises nothing narrower
        raise CheckpointInvalid(f"{file} is not a tokenizer ({problem}); get it again") from problem
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True
    return tokenizer


def _special(tokenizer: Tokenizer, token: str, file: Path) -> int:
    number = tokenizer.token_to_id(token)
    if number is None:
        raise CheckpointInvalid(f"{file} has no {token} token: not a CSM tokenizer")
    return int(number)
