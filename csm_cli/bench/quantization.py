"""What 8-bit weights change: the same speech read before and after."""

from __future__ import annotations

import torch
from torch import Tensor

from csm_cli.bench.timing import PreparedBench, SpeedLoad, fresh_request
from csm_cli.engine import Engine, decode
from csm_cli.models.csm import CsmModel, PrefillSlots
from csm_cli.models.csm.quantization import quantize

_CONTEXT, _MOST = 20, 25


def quantize_and_compare(ready: PreparedBench, frames: int = _MOST) -> dict[str, float]:
    """Rounds the model's layers to 8 bits and reads again, code by code, what it had said before.

    Both are given the same speech, so that one other choice does not become many. `codes_equal`: the share of likeliest
    codes that stay the same; `logits_error`: the root mean square error of the logits over their spread.
    """
    frames = min(frames, _MOST)
    engine, request = Engine(ready.model), fresh_request(ready, SpeedLoad(1, _CONTEXT, frames), seed=1)
    prompts = iter([request])
    codes = torch.stack([frame.codes for frame in decode(engine, lambda: next(prompts, None))])
    wanted = logits(ready.model, request.prompt, codes)
    quantize(ready.model)
    got = logits(ready.model, request.prompt, codes)
    same = (wanted.argmax(-1) == got.argmax(-1)).float().mean()
    error = (got - wanted).square().mean().sqrt() / wanted.std()
    return {"codes_equal": float(same), "logits_error": float(error)}


@torch.inference_mode()
def logits(model: CsmModel, rows: Tensor, codes: Tensor) -> Tensor:
    """[T, K, codes] of each code that was spoken, given all before it."""
    device, count = model.device, len(codes)
    codes = codes.to(device)
    embedded = torch.cat((model.embed_prompt(rows.to(device)), model.embed_frames(codes)))[None]
    cache = model.backbone.new_cache(1, embedded.shape[1])
    hidden = model.backbone(embedded, cache, PrefillSlots(0, 1, 0, embedded.shape[1]))[
        0, -count - 1 : -1
    ]  # [T, hidden]
    spoken = [table[codes[:, index]] for index, table in enumerate(model.depth_tables)]
    inputs = torch.stack((model.projector(hidden), *spoken), 1)  # [T, K, depth hidden]
    books = inputs.shape[1]
    mixed = model.depth(inputs, model.depth.new_cache(count, books), PrefillSlots(0, count, 0, books))
    later = [head(mixed[:, index + 1]) for index, head in enumerate(model.depth_heads)]
    return torch.stack((model.head(hidden), *later), 1)
