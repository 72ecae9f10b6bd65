"""Matching every position with those near it in another map, as frames of a video allow.

    s_ij = scale * (q_i . k_j - 1)         for |i - j| <= radius, in rows and in columns
    numerator_i   = sum_j w_j e^{s_ij} v_j
    denominator_i = sum_j w_j e^{s_ij}

Queries go in tiles with all the keys of a tile's window: two batched products, nothing gathered.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.errors import expected

# A tile of 4 x 4 queries with radius 4 meets 144 keys for each query's 81. Larger tiles meet more
# in vain, smaller ones make products too small for a CPU: with tiles of 2, 4, 8 and 16 the fastest
# of 25 calls took 1.3, 0.8, 1.3 and 3.8 ms for 38 x 44 positions of 32 channels.
TILE = 4


def local_match_sums(
    query: Tensor,  # (C, h, w), of unit length along C
    key: Tensor,  # (C, h, w), likewise
    value: Tensor,  # (D, h, w)
    *,
    radius: int,
    scale: float,
    weights: Tensor | None = None,  # (h, w)
) -> tuple[Tensor, Tensor]:
    """Numerator (D, h, w) and denominator (h, w) of a softmax over each position's window.

    Args:
        query, key: maps of one size whose columns have unit length.
        value: of the key's positions.
        radius: of the square window, in positions.
        scale: of the cosines.
        weights: of the key's positions; None weighs all alike.

    Raises:
        ValueError: maps of different sizes, or a radius below 0.
    """
    height, width = query.shape[1:]
    if key.shape != query.shape or value.shape[1:] != query.shape[1:]:
        came = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
        raise expected("key", "query, key and value of one size", came)
    if radius < 0:
        raise expected("radius", "0 or more positions", str(radius))
    rows, columns = -(-height // TILE), -(-width // TILE)
    ones = value.new_ones(1, height, width) if weights is None else weights[None].to(value)
    # The denominator is the sum of one more value, the weight itself.
    weighted = torch.cat([value * ones, ones])
    q = _tiles(query, 0, rows, columns)
    k = _tiles(key, radius, rows, columns)
    v = _tiles(weighted, radius, rows, columns)
    bias = _window(radius, scale, query.dtype, query.device)
    near = torch.baddbmm(bias, q.transpose(1, 2), k, alpha=scale).exp_()
    sums = torch.bmm(near, v.transpose(1, 2))  # (tiles, TILE * TILE, D + 1)
    maps = sums.view(rows, columns, TILE, TILE, -1).permute(4, 0, 2, 1, 3)
    maps = maps.reshape(-1, rows * TILE, columns * TILE)[:, :height, :width]
    return maps[:-1], maps[-1]


def _tiles(
    maps: Tensor,  # (C, h, w)
    radius: int,
    rows: int,
    columns: int,
) -> Tensor:  # (rows * columns, C, (TILE + 2 radius)^2)
    """The windows of the tiles, zeros outside of the map."""
    channels, height, width = maps.shape
    below, right = rows * TILE - height, columns * TILE - width
    padded = F.pad(maps, (radius, radius + right, radius, radius + below))
    side = TILE + 2 * radius
    windows = padded.unfold(1, side, TILE).unfold(2, side, TILE)
    return windows.permute(1, 2, 0, 3, 4).reshape(rows * columns, channels, side * side)


@lru_cache(maxsize=8)
def _window(radius: int, scale: float, dtype: torch.dtype, device: torch.device) -> Tensor:
    """-scale for the keys within the radius of a tile's query, else -inf: (1, TILE^2, side^2)."""
    places = torch.arange(TILE, device=device)
    keys = torch.arange(TILE + 2 * radius, device=device) - radius
    inside = (places[:, None] - keys[None]).abs() <= radius
    both = inside[:, None, :, None] & inside[None, :, None, :]
    side = TILE + 2 * radius
    flat = both.reshape(1, TILE * TILE, side * side)
    return torch.where(flat, -scale, -torch.inf).to(dtype)
