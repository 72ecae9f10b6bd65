from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastfss.methods.local_match import local_match_sums


def by_loops(query, key, value, radius, scale, weights):
    """The definition, position by position."""
    _, height, width = query.shape
    sums = torch.zeros(value.shape[0] + 1, height, width)
    for y in range(height):
        for x in range(width):
            for v in range(max(0, y - radius), min(height, y + radius + 1)):
                for u in range(max(0, x - radius), min(width, x + radius + 1)):
                    near = weights[v, u] * torch.exp(scale * (query[:, y, x] @ key[:, v, u] - 1))
                    sums[:-1, y, x] += near * value[:, v, u]
                    sums[-1, y, x] += near
    return sums[:-1], sums[-1]


@pytest.mark.parametrize(
    ("size", "radius"), [((1, 1), 0), ((1, 9), 2), ((8, 8), 3), ((9, 17), 1), ((13, 6), 20)]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_sums_are_those_of_the_definition(size, radius, weighted) -> None:
    generator = torch.Generator().manual_seed(radius)
    query, key = (F.normalize(torch.randn(5, *size, generator=generator), dim=0) for _ in range(2))
    value = torch.rand(2, *size, generator=generator)
    weights = torch.rand(size, generator=generator) if weighted else torch.ones(size)
    found = local_match_sums(
        query, key, value, radius=radius, scale=7.0, weights=weights if weighted else None
    )
    wanted = by_loops(query, key, value, radius, 7.0, weights)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_radius_of_zero_matches_the_same_place_alone() -> None:
    maps = F.normalize(torch.randn(4, 6, 7), dim=0)
    value = torch.rand(3, 6, 7)
    numerator, denominator = local_match_sums(maps, maps, value, radius=0, scale=30.0)
    torch.testing.assert_close(numerator / denominator, value)


def test_maps_of_different_sizes_are_refused() -> None:
    maps = torch.zeros(4, 6, 7)
    with pytest.raises(ValueError, match="key: expected query, key and value of one size"):
        local_match_sums(maps, maps[:, :5], torch.zeros(1, 6, 7), radius=1, scale=1.0)
    with pytest.raises(ValueError, match="radius: expected 0 or more positions"):
        local_match_sums(maps, maps, torch.zeros(1, 6, 7), radius=-1, scale=1.0)
