"""The published way to a map: one image and class at a time, backwards through the whole tower."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.text import ClipTower


def published_map(
    tower: ClipTower, image: Tensor, prompts: list[str], label: int, texts: Tensor | None = None
) -> Tensor:
    """Grad-CAM on the stage's grid and not normalised: (h, w).

    Args:
        tower: CLIP; the pooling is open_clip's.
        image: (1, 3, S, S), prepared.
        prompts: of all classes, encoded anew for each image.
        label: the class.
        texts: the prompts' features, where they are not to be encoded anew.
    """
    visual = tower.model.visual
    kept: list[Tensor] = []
    hook = visual.layer4.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
    with torch.enable_grad():
        # The library derives down to the image; the stage's gradient is read on the way.
        features = visual(image.clone().requires_grad_())
        hook.remove()
        kept[0].retain_grad()
        texts = tower.text_features(prompts) if texts is None else texts
        cosines = F.cosine_similarity(features, texts, dim=1)
        (100 * cosines).softmax(dim=0)[label].backward()
    assert kept[0].grad is not None
    weights = kept[0].grad[0].mean(dim=(1, 2))
    return (weights[:, None, None] * kept[0].detach()[0]).sum(dim=0).clamp_min(0)
