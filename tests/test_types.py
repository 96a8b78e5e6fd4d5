from __future__ import annotations

import pytest

from csm_cli.types import GenerationOptions

PUBLISHED = GenerationOptions(temperature=0.6, top_k=50, depth_temperature=0.4, depth_top_k=20)


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
def test_what_is_set_counts_over_what_was_published(given: GenerationOptions, wanted: GenerationOptions) -> None:
    assert given.completed(PUBLISHED) == wanted


def test_the_depth_decoders_own_option_outlives_a_backbones_from_a_higher_layer() -> None:
    turn, flags = GenerationOptions(temperature=0.5), GenerationOptions(depth_temperature=0.0, depth_top_k=1)
    merged = turn.over(flags).completed(PUBLISHED)
    assert (merged.temperature, merged.depth_temperature, merged.depth_top_k) == (0.5, 0.0, 1)
