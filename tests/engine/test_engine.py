"""Rows are independent, cached prefixes equal new prefills, seeds determine the output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from helpers.tiny import Shape, decode_all, frame_rows, greedy, ours, random_csm, text_rows
from torch import Tensor

from csm_cli.checkpoint import open_checkpoint
from csm_cli.engine import Engine, Frame, Request, SamplingParams, decode
from csm_cli.models.csm.model import CsmModel

SAMPLED = SamplingParams(temperature=0.9, top_k=20, depth_temperature=0.9, depth_top_k=20, seed=0, max_frames=30)


@pytest.fixture(scope="module")
def model() -> CsmModel:
    return ours(random_csm(Shape()))[0]


def a_prompt(seed: int, length: int | None = None) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    length = length or int(torch.randint(5, 200, (), generator=generator))
    return text_rows(torch.randint(0, 250, (length,), generator=generator), 8)


def requests(count: int) -> list[Request]:
    return [Request(a_prompt(n), replace(SAMPLED, seed=n)) for n in range(count)]


def alone_in_a_bucket(model: CsmModel, request: Request, rows: int) -> Tensor:
    """The request's codes when every other row of the batch speaks the same short text."""
    others = [Request(a_prompt(999, 5), replace(greedy(SAMPLED.max_frames), seed=1)) for _ in range(rows - 1)]
    return decode_all(Engine(model, slots=rows), [*others, request])[-1]


def test_rows_are_independent(model: CsmModel) -> None:
    together = decode_all(Engine(model, slots=8), requests(8))
    for request, codes in zip(requests(8), together, strict=True):
        assert torch.equal(alone_in_a_bucket(model, request, 8), codes)


@pytest.fixture(scope="module")
def voice() -> CsmModel:
    """The bundled one."""
    checkpoint = open_checkpoint()
    return CsmModel(checkpoint.config, checkpoint.weights, torch.device("cpu"), torch.float32)


def trace(model: CsmModel, submitted: list[Request], slots: int) -> list[Tensor]:
    """Of each request the last hidden states and the codes of its first steps, together in one batch."""
    engine = Engine(model, slots)
    found: dict[int, list[Tensor]] = {each.id: [] for each in submitted}
    for each in submitted:
        engine.admit(each)
    while engine.busy:
        engine.step()
        for index in engine.busy:
            request = engine.slots[index].request
            assert request is not None
            found[request.id].append(torch.cat((engine.state.hidden[index], engine.state.codes[index].float())))
    return [torch.stack(each) for each in found.values()]


@pytest.mark.parametrize("rows", [2, 3, 5, 8, 16])
@pytest.mark.parametrize("kind", ["two heads share keys", "four heads share keys", "the bundled voice"])
def test_row_alone_and_among_others_is_bit_identical(
    kind: str, rows: int, request: pytest.FixtureRequest, model: CsmModel
) -> None:
    """Prompts of 5 to 400 positions, so that the longest decides over how many positions all attend to."""
    if kind == "the bundled voice":
        model = request.getfixturevalue("voice")
    elif kind == "four heads share keys":
        model = ours(random_csm(Shape(kv_heads=1)))[0]
    lengths = (150, 30, 400, 5, 127, 200, 64, 33)
    submitted = [
        Request(a_prompt(n, lengths[n % len(lengths)]), replace(SAMPLED, seed=n, max_frames=6)) for n in range(rows)
    ]
    for index, together in enumerate(trace(model, submitted, rows)):
        (alone,) = trace(model, [submitted[index]], 1)
        assert torch.equal(alone, together), index


def test_sampled_rows_equal_single_ones(model: CsmModel) -> None:
    together = decode_all(Engine(model, slots=8), requests(40))
    for request, codes in zip(requests(40), together, strict=True):
        assert torch.equal(decode_all(Engine(model), [request])[0], codes)


def test_cached_prefix_equals_a_new_prefill(model: CsmModel) -> None:
    """Four turns on one engine, each prompt beginning with what the cache holds, against fresh engines."""
    kept, past = Engine(model), torch.empty(0, 9, dtype=torch.int64)
    for turn in range(4):
        prompt = torch.cat((past, a_prompt(turn, 12)))
        (codes,) = decode_all(kept, [Request(prompt, greedy(15))])
        (anew,) = decode_all(Engine(model), [Request(prompt, greedy(15))])
        assert torch.equal(codes, anew), f"turn {turn}"
        past = torch.cat((prompt, frame_rows(codes)))


def test_next_turn_prefills_only_new_positions(model: CsmModel, monkeypatch: pytest.MonkeyPatch) -> None:
    engine, lengths = Engine(model), []
    embed = model.embed_prompt
    monkeypatch.setattr(model, "embed_prompt", lambda rows: (lengths.append(len(rows)), embed(rows))[1])
    prompt = a_prompt(0, 40)
    (codes,) = decode_all(engine, [Request(prompt, greedy(10))])
    assert len(codes) == 10
    decode_all(engine, [Request(torch.cat((prompt, frame_rows(codes), a_prompt(1, 7))), greedy(5))])
    assert lengths == [40, 1 + 7]  # the frame that ends the speech, and the new text


def test_request_is_assigned_to_the_slot_with_the_longest_cached_prefix(model: CsmModel) -> None:
    engine = Engine(model, slots=2)
    first, second = a_prompt(1, 30), a_prompt(2, 30)
    decode_all(engine, [Request(first, greedy(4)), Request(second, greedy(4))])
    engine.admit(Request(torch.cat((second, a_prompt(3, 5))), greedy(4)))
    assert [slot.request is not None for slot in engine.slots] == [False, True]


def test_more_requests_than_slots_are_all_decoded(model: CsmModel) -> None:
    few = requests(11)
    for request, codes in zip(few, decode_all(Engine(model, slots=4), few), strict=True):
        assert torch.equal(codes, alone_in_a_bucket(model, request, 4))


def test_batch_shrinks_as_rows_end(model: CsmModel) -> None:
    engine = Engine(model, slots=8)
    lengths = [3, 3, 3, 3, 3, 3, 3, 9]
    submitted = [Request(a_prompt(n), replace(greedy(length), seed=n)) for n, length in enumerate(lengths)]
    codes = decode_all(engine, submitted)
    assert list(map(len, codes)) == lengths
    assert torch.equal(codes[-1], decode_all(Engine(model), [submitted[-1]])[0])


def test_next_request_is_taken_right_after_a_stop(model: CsmModel) -> None:
    """The source may answer a stop with the conversation's next turn."""
    submitted = [Request(a_prompt(1), greedy(2))]
    seen: list[Frame] = []
    for frame in decode(Engine(model), lambda: submitted.pop() if submitted else None):
        seen.append(frame)
        if frame.stop and len(seen) < 6:
            submitted.append(Request(a_prompt(len(seen)), greedy(2)))
    assert [frame.stop for frame in seen] == [None, "cap"] * 3


def with_fixed_codes(model: CsmModel, codes: list[int]) -> CsmModel:
    """The model with heads that always choose the given codes."""

    def fixed(head: Callable[[Tensor], Tensor], code: int) -> Callable[[Tensor], Tensor]:
        bias = torch.full((model.config.codebook_size,), -1e4)
        bias[code] = 1e4
        return lambda x: head(x) + bias

    model.head, *model.depth_heads = map(fixed, [model.head, *model.depth_heads], codes)
    return model


def test_eos_in_all_codebooks_but_the_last_ends_speech() -> None:
    model = with_fixed_codes(ours(random_csm(Shape()))[0], [0] * 7 + [5])
    frames = list(decode(Engine(model), iter([Request(a_prompt(1), greedy(9)), None]).__next__))
    assert [frame.stop for frame in frames] == ["eos"]
    assert frames[0].codes.tolist() == [0] * 8


def test_eos_in_some_codebooks_is_speech() -> None:
    model = with_fixed_codes(ours(random_csm(Shape()))[0], [0, 0, 0, 7, 0, 0, 0, 0])
    frames = list(decode(Engine(model), iter([Request(a_prompt(1), greedy(3)), None]).__next__))
    assert [frame.stop for frame in frames] == [None, None, "cap"]


def test_special_ids_are_never_sampled() -> None:
    theirs = random_csm(Shape())
    with torch.no_grad():
        theirs.lm_head.weight[64:] *= 100
        theirs.depth_decoder.codebooks_head.weight[:, :, 64:] *= 100
    model = ours(theirs)[0]
    codes = torch.cat(decode_all(Engine(model), requests(2)))
    assert int(codes.max()) < 64


def test_window_can_be_filled_to_the_last_position(model: CsmModel) -> None:
    positions = model.config.backbone.max_seq_len
    engine = Engine(model, slots=2)
    full = Request(a_prompt(1, positions - 6), greedy(6))
    (codes,) = decode_all(engine, [full])
    assert len(codes) == 6
    assert len(decode_all(engine, [Request(a_prompt(2), greedy(3))])[0]) == 3  # beside the idle full row
    with pytest.raises(ValueError, match="exceed the window"):
        engine.admit(Request(a_prompt(1, positions - 6), greedy(7)))


@pytest.mark.parametrize(
    "poisoned",
    [
        "backbone_model.norm.weight",
        "backbone_model.layers.2.mlp.down_proj.weight",
        "depth_decoder.model.norm.weight",
        "depth_decoder.model.layers.0.self_attn.v_proj.weight",
    ],
)
def test_non_finite_logits_stop_the_request(poisoned: str) -> None:
    theirs = random_csm(Shape())
    with torch.no_grad():
        theirs.get_parameter(poisoned).fill_(float("nan"))
    frames = list(decode(Engine(ours(theirs)[0]), iter([Request(a_prompt(1), greedy(4)), None]).__next__))
    assert [frame.stop for frame in frames] == ["broken"]


def test_broken_row_does_not_affect_others(model: CsmModel) -> None:
    """A row is poisoned through its hidden state, as a float16 overflow would."""
    engine, submitted = Engine(model, slots=4), requests(4)
    for request in submitted:
        engine.admit(request)
    engine.state.hidden[1] = float("nan")
    frames: dict[Request, list[Tensor]] = {request: [] for request in submitted}
    while engine.busy:
        for frame in engine.step():
            frames[frame.request].append(frame.codes)
    assert frames.pop(submitted[1])[0].tolist() == [-1] * 8
    for request, codes in frames.items():
        assert torch.equal(torch.stack(codes), alone_in_a_bucket(model, request, 4))
    assert torch.equal(decode_all(engine, requests(4))[1], decode_all(Engine(model, slots=4), requests(4))[1])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_follows_float32_at_first(dtype: torch.dtype) -> None:
    theirs = random_csm(Shape(), seed=2)
    model, config = ours(theirs)
    half = CsmModel(config, theirs.state_dict(), torch.device("cpu"), dtype)
    request = Request(a_prompt(4, 20), greedy(20))
    expected, got = decode_all(Engine(model), [request])[0], decode_all(Engine(half), [request])[0]
    assert torch.equal(expected[0, :1], got[0, :1])
    assert got.shape == expected.shape


def test_closing_the_generator_frees_the_slots(model: CsmModel) -> None:
    engine = Engine(model, slots=2)
    frames = decode(engine, iter([*requests(2), None]).__next__)
    next(frames)
    frames.close()
    assert not engine.busy
    assert torch.equal(decode_all(engine, requests(1))[0], decode_all(Engine(model, slots=2), requests(1))[0])
