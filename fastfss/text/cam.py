"""Activation maps of labels by Grad-CAM, as IMR-HSNet takes them from CLIP.

Selvaraju et al.: "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization", ICCV 2017.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.errors import expected
from fastfss.text.clip import ClipTower, centre_square

TEMPLATE = "a photo of a {}"
MAP_SIZE = 50
SCALE = 100.0  # of the cosines; the published code does not take CLIP's learned one
_EPSILON = 1e-7


def class_features(tower: ClipTower, labels: Sequence[str], template: str = TEMPLATE) -> Tensor:
    """The normalised text features (N, D) of labels, to compute once for many images.

    Args:
        tower: CLIP.
        labels: of all classes that compete.
        template: the sentence around a label.

    Raises:
        ValueError: an empty label, or one that the tokenizer cannot take.
    """
    for number, label in enumerate(labels):
        if isinstance(label, str) and not label.strip():
            raise expected(f"labels[{number}]", "a name", repr(label))
    if "{}" not in template:
        raise expected("template", "a sentence with {} for the label", repr(template))
    texts = [template.format(label) if isinstance(label, str) else label for label in labels]
    return F.normalize(tower.text_features(texts), dim=1)


def probabilities(
    tower: ClipTower, activations: Tensor, classes: Tensor, absent: Tensor | None = None
) -> Tensor:
    """The probabilities (B, N) of classes: softmax of 100 times the cosines.

    Args:
        tower: CLIP.
        activations: (B, C, h, w) of tower.activations.
        classes: (N, D) of class_features.
        absent: (B, N) bool, the classes that do not compete; their probability is 0.
    """
    features = F.normalize(tower.pool(activations), dim=1)
    logits = SCALE * features @ classes.t()
    if absent is not None:
        logits = logits.masked_fill(absent, -torch.inf)
    return logits.softmax(dim=1)


def coarse_maps(
    tower: ClipTower,
    activations: Tensor,
    classes: Tensor,
    images: Tensor,
    labels: Tensor,
    absent: Tensor | None = None,
) -> Tensor:
    """Grad-CAM of P pairs of image and class, on the last stage's grid and not normalised.

        w_c = mean over places of dp / dA_c,   map = max(0, sum over c of w_c A_c)

    All pairs at once, and backwards through the pooling alone: nothing below is derived.

    Args:
        tower: CLIP.
        activations: A, (B, C, h, w) of tower.activations.
        classes: (N, D) of class_features.
        images: (P,) int64, the image of each pair.
        labels: (P,) int64, the class of each pair.
        absent: (P, N) bool, the classes that do not compete with a pair's.

    Returns:
        (P, h, w).
    """
    with torch.inference_mode(False), torch.enable_grad():
        # Copies: what was made in inference mode cannot be derived through.
        maps = activations.detach()[images].clone().requires_grad_()
        absent = None if absent is None else absent.clone()
        found = probabilities(tower, maps, classes.detach().clone(), absent)
        targets = found.gather(1, labels.clone()[:, None])
        (gradients,) = torch.autograd.grad(targets.sum(), maps)
    weights = gradients.mean(dim=(2, 3))
    return torch.einsum("pc,pchw->phw", weights, maps.detach()).relu()


def stretched(maps: Tensor, size: int) -> Tensor:
    """Maps (P, h, w) in [0, 1] on a grid of the tower's image, as published; all 0 stays 0."""
    large = F.interpolate(_stretch(maps).unsqueeze(1), (size, size), mode="bilinear")
    return _stretch(large.squeeze(1).clamp_min(0))


def class_maps(
    tower: ClipTower,
    images: Tensor,
    classes: Tensor,
    pairs: Sequence[tuple[int, int]],
    size: int | None = MAP_SIZE,
    absent: Tensor | None = None,
) -> Tensor:
    """The activation maps of P pairs of image and class.

    Args:
        tower: CLIP.
        images: (B, 3, S, S) of centre_square.
        classes: (N, D) of class_features: all classes that compete.
        pairs: the numbers of image and class of each.
        size: both sides of the maps; published: 50. None: as large as the tower's images.
        absent: (P, N) bool, the classes that do not compete with a pair's.

    Returns:
        float32 (P, size, size) in [0, 1]; all 0 where nothing speaks for the class.
    """
    device = tower.device
    with torch.no_grad():
        activations = tower.activations(images.to(device))
        chosen = torch.tensor(list(pairs), dtype=torch.int64, device=device).view(-1, 2)
        coarse = coarse_maps(tower, activations, classes, chosen[:, 0], chosen[:, 1], absent)
        maps = stretched(coarse, tower.size)
        if size is None:
            return maps
        # As published: not antialiased, and not stretched again.
        return F.interpolate(maps.unsqueeze(1), (size, size), mode="bilinear").squeeze(1)


def activation_maps(
    tower: ClipTower,
    images: Sequence[Tensor],
    labels: Sequence[str],
    among: Sequence[str],
    *,
    template: str = TEMPLATE,
) -> Tensor:
    """The published maps of (image, label) pairs, as IMR-HSNet takes them.

    Args:
        tower: CLIP.
        images: B of uint8 (3, H, W), of any sizes.
        labels: one an image, each of `among`.
        among: all classes of the data set: the label competes with them.
        template: the sentence around a label.

    Returns:
        float32 (B, 50, 50).

    Raises:
        ValueError: another number of labels, or one that is not among the classes.
    """
    if len(labels) != len(images):
        raise expected("labels", f"{len(images)}, one an image", str(len(labels)))
    for number, label in enumerate(labels):
        if label not in among:
            raise expected(f"labels[{number}]", "one of `among`", repr(label))
    prepared = torch.stack([centre_square(image, tower.size) for image in images])
    classes = class_features(tower, among, template)
    pairs = [(image, list(among).index(label)) for image, label in enumerate(labels)]
    return class_maps(tower, prepared, classes, pairs)


def _stretch(maps: Tensor) -> Tensor:
    """N(x) = (x - min x) / (1e-7 + max(x - min x)), each map for itself."""
    maps = maps - maps.amin(dim=(1, 2), keepdim=True)
    return maps / (_EPSILON + maps.amax(dim=(1, 2), keepdim=True))
