"""Generation options: which level sets a value, and what the depth decoder follows."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from csm_cli.types import GenerationOptions, Turn, resolve_options, turn_seed

PUBLISHED = GenerationOptions(temperature=0.6, top_k=50, depth_temperature=0.4, depth_top_k=20)
UNSET = GenerationOptions()
LEVELS = ("flag", "turn", "defaults", "checkpoint")


def resolve(*levels: GenerationOptions) -> GenerationOptions:
    """The options of a turn, from the four levels, the highest first."""
    flags, turn, defaults, checkpoint = levels
    return resolve_options(flags, Turn(0, "Hi", options=turn), defaults, checkpoint)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (GenerationOptions(), PUBLISHED),
        (GenerationOptions(seed=0), GenerationOptions(0.6, 50, 0.4, 20, seed=0)),
        (GenerationOptions(temperature=0.0), GenerationOptions(0.0, 50, None, 20)),
        (GenerationOptions(top_k=0), GenerationOptions(0.6, 0, 0.4, None)),
        (GenerationOptions(temperature=0.9, depth_temperature=0.0), GenerationOptions(0.9, 50, 0.0, 20)),
        (GenerationOptions(depth_top_k=1), GenerationOptions(0.6, 50, 0.4, 1)),
    ],
)
def test_set_options_override_published_ones(given: GenerationOptions, wanted: GenerationOptions) -> None:
    assert given.over(PUBLISHED) == wanted


@pytest.mark.parametrize(("depth", "backbone"), list(itertools.product(range(len(LEVELS)), repeat=2)))
def test_the_depth_decoder_follows_a_backbone_value_of_a_higher_level(depth: int, backbone: int) -> None:
    levels = [UNSET] * len(LEVELS)
    levels[backbone] = replace(levels[backbone], temperature=0.5, top_k=7)
    levels[depth] = replace(levels[depth], depth_temperature=0.0, depth_top_k=1)
    expected = (0.5, 7, 0.0, 1) if depth <= backbone else (0.5, 7, 0.5, 7)
    assert resolve(*levels).sampling == expected


def test_without_any_value_sampling_is_greedy_over_all_codes() -> None:
    assert UNSET.sampling == (0.0, 0, 0.0, 0)


OPTIONS = st.builds(
    GenerationOptions,
    temperature=st.none() | st.floats(0, 100),
    top_k=st.none() | st.integers(0, 2051),
    depth_temperature=st.none() | st.floats(0, 100),
    depth_top_k=st.none() | st.integers(0, 2051),
    seed=st.none() | st.integers(0, 2**63 - 1),
    max_duration=st.none() | st.floats(0, 3600),
)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine
@given(st.tuples(OPTIONS, OPTIONS, OPTIONS, OPTIONS))
def test_the_highest_level_that_sets_a_value_wins(levels: tuple[GenerationOptions, ...]) -> None:
    merged = resolve(*levels)
    for field in fields(GenerationOptions):
        backbone = field.name.removeprefix("depth_")
        setting = [each for each in levels if (getattr(each, field.name), getattr(each, backbone)) != (None, None)]
        assert getattr(merged, field.name) == (getattr(setting[0], field.name) if setting else None)


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None)  # a busy machine
@given(OPTIONS, OPTIONS, OPTIONS)
def test_levels_can_be_merged_in_any_order(
    first: GenerationOptions, second: GenerationOptions, third: GenerationOptions
) -> None:
    assert first.over(second).over(third) == first.over(second.over(third))


@pytest.mark.parametrize(
    ("flag", "own", "expected"), [(None, None, 102), (None, 7, 7), (0, 7, 2), (0, None, 2), (2**63 - 1, None, 1)]
)
def test_each_turn_has_its_seed(flag: int | None, own: int | None, expected: int) -> None:
    turn = Turn(0, "Hi", options=GenerationOptions(seed=own))
    assert turn_seed(GenerationOptions(seed=flag), turn, 2, base_seed=100) == expected
