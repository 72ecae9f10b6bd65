"""Masks that follow the image's edges, although features have a stride of 8 or 16."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.errors import expected, import_extra
from fastfss.methods.memo import TensorMemo

Refinement = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Image uint8 (3, H, W), probability (H, W), annotation uint8 (H, W) of {0, 1, 255} -> (H, W)."""
RefinementName = Literal["none", "guided", "grabcut", "edges"]

GUIDED_RADIUS = 1 / 30  # of the shorter side
GUIDED_EPS = 1e-4
GUIDED_SIDE = 480  # the shorter side that the functions of windows are fitted at, at most
GRABCUT_SIDE = 320
GRABCUT_ROUNDS = 2
EDGES_SIDE = 480
EDGES_BAND = 0.03  # of the shorter side, to both sides of the mask's edge
EDGES_SURE = 0.7  # beyond the band what is at least so probable is fixed
EDGES_SHARE = 0.4  # of GrabCut's labels, beside the guided filter's probabilities

_GUIDES = TensorMemo()


def get_refinement(name: RefinementName) -> Refinement | None:
    """A refinement by its name: "none", "guided", "grabcut" or "edges".

    Raises:
        ValueError: there is none of the name.
        MissingExtraError: "grabcut" or "edges" without OpenCV.
    """
    if name not in get_args(RefinementName):
        raise expected("refinement", f"one of {', '.join(get_args(RefinementName))}", repr(name))
    if name in ("grabcut", "edges"):
        import_extra("cv2", extra="interactive", purpose=f"the refinement {name}")
    return {"none": None, "guided": guided_filter, "grabcut": grabcut, "edges": edges}[name]


def guided_filter(image: Tensor, probability: Tensor, annotation: Tensor) -> Tensor:
    """The guided filter of He, Sun, Tang (TPAMI 2013), the image's grey level the guide.

    In each window the probability is fitted by a linear function of the guide, so that its edges
    become the image's. Annotated pixels keep what is said of them.

    Of a large image they are fitted at 480 pixels a side and applied to all of its pixels, as in He
    and Sun's fast guided filter (arXiv:1505.00996).
    """
    size = (image.shape[1], image.shape[2])
    scale = min(1.0, GUIDED_SIDE / min(size))
    small = (round(scale * size[0]), round(scale * size[1]))
    radius = max(1, round(GUIDED_RADIUS * min(small)))
    guide, i, mean_i, share = _of_guide(image, small, radius)
    p = _resized(probability.float(), small)
    mean_p, mean_ip = box_means(torch.stack([p, i * p]), radius)
    slope = (mean_ip - mean_i * mean_p) * share
    means = box_means(torch.stack([slope, mean_p - slope * mean_i]), radius)
    slope, offset = (_resized(one.float(), size) for one in means)
    return _said(torch.addcmul(offset, slope, guide).clamp_(0, 1), annotation)


def _of_guide(image: Tensor, small: tuple[int, int], radius: int) -> list[Tensor]:
    """What the image alone decides: its grey levels, and i, its mean and 1 / (var + eps), small.

    Kept as long as the image is, since each click asks for it: two of six box means.
    """
    kept = [_GUIDES.get([image], (part, small, radius)) for part in range(4)]
    found = [one for one in kept if one is not None]
    if len(found) == len(kept):
        return found
    guide = image.float().mean(dim=0) / 255
    i = _resized(guide, small)
    mean, square = box_means(torch.stack([i, i * i]), radius)
    made = [guide, i, mean, 1 / (square - mean**2 + GUIDED_EPS)]
    for part, one in enumerate(made):
        _GUIDES.put([image], (part, small, radius), one)
    return made


def _resized(one: Tensor, size: tuple[int, int]) -> Tensor:
    """A map (H, W) at another size."""
    if one.shape == size:
        return one
    # Antialiased where it shrinks: seven times as fast as "area" where the sides are no multiples.
    shrinks = size[0] < one.shape[0]
    return F.interpolate(one[None, None], size, mode="bilinear", antialias=shrinks)[0, 0]


def box_means(
    maps: Tensor,  # (N, H, W)
    radius: int,
) -> Tensor:  # (N, H, W), float64
    """The mean over the square of 2 radius + 1 pixels around each; the border goes on outside.

    By running sums, whose cost does not grow with the radius, in float64, where they lose nothing
    that counts: 0.6 ms for (1, 360, 480) and a radius of 12 on one core, where pooling takes 48.
    """
    side = 2 * radius + 1
    # One more in front: it is in both sums of each difference.
    sums = F.pad(maps[None], (radius + 1, radius) * 2, mode="replicate")[0]
    for axis in (2, 1):
        running = sums.cumsum(axis, dtype=torch.float64)
        length = running.shape[axis] - side
        sums = running.narrow(axis, side, length) - running.narrow(axis, 0, length)
    return sums.mul_(1 / side**2)


def grabcut(image: Tensor, probability: Tensor, annotation: Tensor) -> Tensor:
    """GrabCut (Rother et al., SIGGRAPH 2004) that starts from the probability.

    Annotated pixels are sure; the others are probably what the probability says, and those far from
    1/2 are what the colour models are first made of. At most 320 pixels a side, then enlarged and
    put together with the probability's own edges.
    """
    chance = _shrunk(probability, GRABCUT_SIDE)
    found = _cut(image, chance > 0.5, np.zeros(chance.shape, bool), annotation)
    if found is None:
        return _said(probability.float(), annotation)
    return _said(_enlarged(found, probability), annotation)


def edges(image: Tensor, probability: Tensor, annotation: Tensor) -> Tensor:
    """The guided filter, and GrabCut in a band along the edge that it gives.

    GrabCut over a whole image may run away with a colour; in the band it finds the edge. What comes
    back is the filter's probability and GrabCut's labels, averaged. At most 480 pixels a side.
    """
    cv2: Any = import_extra("cv2", extra="interactive", purpose="the refinement edges")
    smooth = guided_filter(image, probability, annotation)
    chance = _shrunk(smooth, EDGES_SIDE)
    inside = chance > 0.5
    if inside.all() or not inside.any():
        return smooth
    band = max(2, round(EDGES_BAND * min(chance.shape)))
    depth, distance = (
        cv2.distanceTransform(side.astype(np.uint8), cv2.DIST_L2, 3) for side in (inside, ~inside)
    )
    fixed = (depth > band) & (chance > EDGES_SURE) | (distance > band) & (chance < 1 - EDGES_SURE)
    found = _cut(image, inside, fixed, annotation)
    if found is None:
        return smooth
    return _said(torch.lerp(smooth, _enlarged(found, smooth), EDGES_SHARE), annotation)


def _shrunk(probability: Tensor, side: int) -> npt.NDArray[np.float32]:
    """To at most so many pixels a side."""
    height, width = probability.shape
    scale = min(1.0, side / max(height, width))
    small = (max(8, round(height * scale)), max(8, round(width * scale)))
    return F.interpolate(probability.float()[None, None], small, mode="bilinear")[0, 0].numpy()


def _enlarged(found: npt.NDArray[np.bool_], like: Tensor) -> Tensor:
    size = (like.shape[0], like.shape[1])
    pixels = torch.from_numpy(found.astype(np.float32))[None, None]
    return F.interpolate(pixels, size, mode="bilinear")[0, 0]


def _cut(
    image: Tensor,
    inside: npt.NDArray[np.bool_],  # (h, w)
    fixed: npt.NDArray[np.bool_],  # (h, w)
    annotation: Tensor,
) -> npt.NDArray[np.bool_] | None:  # (h, w)
    """GrabCut from a mask, of which some is fixed, besides what is annotated; None of no use."""
    cv2: Any = import_extra("cv2", extra="interactive", purpose="the refinement grabcut")
    small = inside.shape
    pixels = cv2.resize(image.permute(1, 2, 0).numpy(), small[::-1], interpolation=cv2.INTER_AREA)
    labels = np.where(inside, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[fixed] = np.where(inside[fixed], cv2.GC_FGD, cv2.GC_BGD)
    for value, sure in ((0, cv2.GC_BGD), (1, cv2.GC_FGD)):
        # The largest share of each pixel, so that no point is lost.
        said = F.adaptive_max_pool2d((annotation == value).float()[None], small)[0].numpy()
        labels[said > 0.5] = sure
    object_ = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    if object_.all() or not object_.any():
        return None
    models = np.zeros((2, 1, 65))  # of background and object
    cv2.setRNGSeed(0)  # its colour models begin at random
    cv2.grabCut(
        np.ascontiguousarray(pixels),
        labels,
        None,
        models[0],
        models[1],
        GRABCUT_ROUNDS,
        cv2.GC_INIT_WITH_MASK,
    )
    found: npt.NDArray[np.bool_] = (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)
    return found


def _said(probability: Tensor, annotation: Tensor) -> Tensor:
    return torch.where(annotation == 1, 1.0, torch.where(annotation == 0, 0.0, probability))
