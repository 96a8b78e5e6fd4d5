"""Another take of a finished turn, from the takes in the turn cache. No torch for turns of a single chunk."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from csm_cli.audio.io import Audio
from csm_cli.errors import UsageError
from csm_cli.generation.chunking import SpeechPauses
from csm_cli.generation.events import Segment
from csm_cli.generation.turn_cache import CachedTurn, TurnCache


def pick_take(cache: TurnCache, turn: CachedTurn, number: int) -> CachedTurn:
    """The turn with another take, picked by hand; its files are in the cache, its line is not.

    number: of the take, from 1; in a turn of several chunks it replaces the take of its chunk.

    Raises:
        UsageError: there is no such take, or it was not stored.
        OutputRefused, OutputFailed: the cache cannot be written.
    """
    if not 1 <= number <= len(turn.takes):
        count = len(turn.takes)
        raise UsageError(f"turn {turn.number} has {count} take{'' if count == 1 else 's'}, and no take {number}")
    chosen = turn.takes[number - 1]
    takes = tuple(
        replace(take, picked=index == number) if take.chunk == chosen.chunk else take
        for index, take in enumerate(turn.takes, 1)
    )
    picked = sorted((take for take in takes if take.picked), key=lambda take: take.chunk)
    contents = [cache.content(take.digest) if take.digest else None for take in picked]
    stored = [content for content in contents if content]
    texts = [segment.text for segment in turn.segments] or [turn.text]
    if len(stored) < len(texts) or len(picked) != len(texts):
        raise UsageError(
            f"take {number} of turn {turn.number} was not stored; "
            f"csm converse with --keep-takes --redo {turn.number} stores new ones"
        )
    frames = [len(codes) for codes, _ in stored]
    turn = replace(turn, takes=takes, by_hand=True)
    chunks = tuple((text, count) for (text, _), count in zip(turn.chunks, frames, strict=False))
    pauses = SpeechPauses.of(turn.text, texts)
    if len(texts) == 1 and not pauses.total:
        audio = stored[0][1]
        segment = Segment(texts[0], 0.0, audio.duration, frames[0])
        return replace(
            turn, digest=chosen.digest, seed=chosen.seed, stop=chosen.stop, chunks=chunks, segments=(segment,)
        )
    import torch

    from csm_cli.generation.take import Take, concatenate, worst_stop

    parts = [
        Take(torch.from_numpy(codes), audio.samples, take.stop, take.seed, "", take.chunk)
        for take, (codes, audio) in zip(picked, stored, strict=True)
    ]
    rate = stored[0][1].rate
    samples, segments = concatenate(texts, parts, rate, pauses)
    digest = cache.store(np.concatenate([codes for codes, _ in stored]), Audio(samples, rate))
    stop = worst_stop(take.stop for take in picked)
    return replace(turn, digest=digest, stop=stop, chunks=chunks, segments=segments)
