"""Sampling: greedy, top-k and temperature per row, and random numbers that depend on the seed alone."""

from __future__ import annotations

import torch

from csm_cli.engine.sampler import FRAMES_PER_DRAW, Sampler, Uniforms

CPU = torch.device("cpu")


def frequencies(logits: list[float], temperature: float, top_k: int, draws: int = 4000) -> torch.Tensor:
    """How often each code is chosen over evenly spread uniforms."""
    rows = torch.tensor(logits).expand(draws, -1)
    sampler = Sampler(draws, len(logits), CPU)
    sample = sampler.bind(draws, sampler.set([(temperature, top_k)] * draws))
    codes, embedded = sample(rows, (torch.arange(draws)[:, None] + 0.5) / draws, torch.arange(len(logits))[:, None])
    assert torch.equal(embedded[:, 0], codes)
    return torch.bincount(codes, minlength=len(logits)) / draws


def test_temperature_zero_is_greedy() -> None:
    assert frequencies([0.1, 3.0, 2.9], temperature=0, top_k=50).tolist() == [0, 1, 0]


def test_frequencies_follow_the_softmax() -> None:
    logits = [1.0, 0.0, -1.0, 2.0]
    expected = (torch.tensor(logits) / 0.7).softmax(-1)
    torch.testing.assert_close(frequencies(logits, 0.7, top_k=0), expected, atol=1e-3, rtol=0)


def test_top_k_excludes_other_codes() -> None:
    expected = torch.tensor([1.0, 2.0]).softmax(-1)
    got = frequencies([1.0, 0.0, -1.0, 2.0], 1.0, top_k=2)
    torch.testing.assert_close(got, torch.tensor([expected[0], 0, 0, expected[1]]), atol=1e-3, rtol=0)


def test_top_k_beyond_the_codebook_keeps_all() -> None:
    assert (frequencies([0.0, 0.0], 1.0, top_k=50) > 0).all()


def test_rows_have_their_own_parameters() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0]] * 3)
    sampler = Sampler(3, 3, CPU)
    sample = sampler.bind(3, sampler.set([(0, 50), (1.0, 1), (1.0, 3)]))
    assert sample(logits, torch.full((3, 1), 0.99), torch.zeros(3, 1))[0].tolist() == [2, 2, 0]


def test_largest_uniform_stays_inside_the_top_k() -> None:
    logits = torch.randn(64, 100, generator=torch.Generator().manual_seed(0))
    sampler = Sampler(64, 100, CPU)
    sample = sampler.bind(64, sampler.set([(1.0, 5)] * 63 + [(1.0, 0)]))
    codes, _ = sample(logits, torch.full((64, 1), 1.0 - 2**-24), torch.zeros(100, 1))
    kept = logits[:63].topk(5).indices
    assert (kept == codes[:63, None]).any(-1).all()


def test_uniforms_depend_on_seed_and_frame() -> None:
    first, again, other = Uniforms(7, 4), Uniforms(7, 4), Uniforms(8, 4)
    frames = 2 * FRAMES_PER_DRAW + 3
    a = torch.stack([first.frame(n) for n in range(frames)])
    b = torch.stack([again.frame(n) for n in range(frames)])
    c = torch.stack([other.frame(n) for n in range(frames)])
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert len(a.unique()) > 0.99 * a.numel()
