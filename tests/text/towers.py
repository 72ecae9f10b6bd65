"""A CLIP small enough for tests, with random weights of a seed, and pictures."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
from torch import Tensor

from fastfss.text import ClipTower, tower_of
from tests.parity.golden import array_for


@cache
def tiny_state() -> dict[str, Tensor]:
    """The state dict of a small RN50: the published names, four blocks, 224 px."""
    vision = CLIPVisionCfg(layers=(1, 1, 1, 1), width=8, patch_size=None, image_size=224)
    text = CLIPTextCfg(context_length=77, vocab_size=49408, width=64, heads=1, layers=1)
    shapes = CLIP(32, vision_cfg=vision, text_cfg=text, quick_gelu=True).state_dict()
    return {
        key: torch.from_numpy(array_for(key, tuple(one.shape), 5))
        if one.is_floating_point()
        else one
        for key, one in shapes.items()
    }


def tiny_tower() -> ClipTower:
    return tower_of(tiny_state())


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    """Noise with a bright rectangle, uint8 (3, H, W)."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 120, (3, height, width), dtype=np.uint8)
    pixels[:, height // 4 : height // 2, width // 3 : width // 2] += 130
    return torch.from_numpy(pixels)
