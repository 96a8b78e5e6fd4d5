"""Turns to prompt tokens, identical to those of transformers' CsmProcessor for the same conversation.

A turn is `<|begin_of_text|>[SPEAKER]TEXT<|end_of_text|>`, then the frames of its audio and one frame of end codes. The
model's `prompt_style` says how speaker and text are written.
Unlike there, special tokens in a text are not interpreted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Tokenizer

from csm_cli.errors import CheckpointInvalid, InputError, is_stop

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from csm_cli.models.csm.config import ModelConfig

BEGIN, END = "<|begin_of_text|>", "<|end_of_text|>"
UNUSED = -1


class PromptBuilder:
    """Builds prompt tokens, int64 [S, K + 1]: K codes of a frame, or a text id in the last column; -1 where unused."""

    def __init__(self, tokenizer_file: Path, config: ModelConfig) -> None:
        """Raises CheckpointInvalid if the tokenizer cannot be read or is not the model's."""
        self._config = config
        try:
            tokenizer = Tokenizer.from_file(str(tokenizer_file))
        except BaseException as problem:  # the library raises nothing narrower, and panics of Rust are BaseExceptions
            if is_stop(problem):
                raise
            raise CheckpointInvalid(f"{tokenizer_file} is not a tokenizer ({problem}); get it again") from problem
        tokenizer.no_padding()
        tokenizer.no_truncation()
        tokenizer.encode_special_tokens = True
        begin, end = tokenizer.token_to_id(BEGIN), tokenizer.token_to_id(END)
        if begin is None or end is None:
            raise CheckpointInvalid(f"{tokenizer_file} has no {BEGIN} and {END} tokens: not a CSM tokenizer")
        size = tokenizer.get_vocab_size(with_added_tokens=True)
        if size > config.text_vocab:
            raise CheckpointInvalid(
                f"{tokenizer_file} has {size} tokens, the model {config.text_vocab}: not the model's tokenizer"
            )
        self._tokenizer = tokenizer
        self._begin, self._end = int(begin), int(end)

    def text_ids(self, speaker: int, text: str) -> list[int]:
        """The ids of a turn's text, with begin and end of text.

        Raises:
            InputError: an empty text, or characters that are not Unicode text.
        """
        if not text.strip():
            raise InputError("there is no text to speak")
        try:
            encoding = self._tokenizer.encode(self._config.prompt_text(speaker, text), add_special_tokens=False)
        except (TypeError, UnicodeError) as problem:  # a lone surrogate, from bytes that are not UTF-8
            raise InputError(f"the text is not valid Unicode: {text!r:.100}") from problem
        except BaseException as problem:  # a panic of Rust
            if is_stop(problem):
                raise
            raise InputError(f"the tokenizer failed on the text ({type(problem).__name__}: {problem})") from problem
        ids = [self._begin, *encoding.ids, self._end]
        if max(ids) >= self._config.text_vocab:
            sizes = f"the tokenizer has the id {max(ids)}, the model {self._config.text_vocab} ids"
            raise CheckpointInvalid(f"{sizes}: not the model's tokenizer")
        return ids

    def turn_tokens(self, speaker: int, text: str, codes: Tensor | None = None) -> Tensor:
        """The tokens [S, K + 1] of a turn: its text, and with `codes` [T, K] its frames and the frame that ends it.

        Raises:
            InputError: a text that cannot be spoken, or codes out of range.
        """
        import torch

        ids = torch.tensor(self.text_ids(speaker, text))
        codebooks, vocab = self._config.codebooks, self._config.vocab
        text_tokens = torch.full((len(ids), codebooks + 1), UNUSED)
        text_tokens[:, codebooks] = ids
        if codes is None:
            return text_tokens
        low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
        if low < 0 or high >= vocab:
            raise InputError(f"codes are {low} to {high}, the model has 0 to {vocab - 1}; encode the audio again")
        frames = torch.full((len(codes) + 1, codebooks + 1), UNUSED)
        frames[:-1, :-1] = codes.reshape(len(codes), codebooks)
        frames[-1, :-1] = self._config.eos
        return torch.cat([text_tokens, frames])
