"""The decode loop. There is one: speaking, streaming, batches and previews all consume it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from csm_cli.engine.requests import Frame, Request
from csm_cli.engine.scheduler import Engine


def decode(engine: Engine, source: Callable[[], Request | None]) -> Iterator[Frame]:
    """The frames of `steps` one by one."""
    for frames in decode_loop(engine, source):
        yield from frames


def decode_loop(
    engine: Engine, source: Callable[[], Request | None], meanwhile: Callable[[], None] = lambda: None
) -> Iterator[list[Frame]]:
    """Yields the frames of each step, of all requests together, until `source` has none left and all have ended.

    `source` is asked for a request whenever a slot is free, None meaning "not now"; what it gives after a frame with a
    stop reason (the conversation's next turn) begins at once, on the KV cache that frame left. Whoever stops listening
    frees the slots. meanwhile: as for `Engine.step`.
    """
    try:
        while True:
            while not engine.full and (request := source()):
                engine.admit(request)
            if not engine.busy:
                return
            with engine.pace.counted():
                frames = engine.step(meanwhile)
            yield frames
    finally:
        engine.release()
