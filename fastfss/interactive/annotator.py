"""The simulated annotator of the click protocols."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from fastfss.errors import expected

Mask = npt.NDArray[np.bool_]


def next_click(
    predicted: Mask, truth: Mask, ignored: Mask | None = None
) -> tuple[int, int, bool] | None:
    """Where a person would click next, as the field simulates it (Sofiiuk et al., RITM, ICIP 2022).

    Of the missed and the wrong pixels, the side with the pixel that is farthest from the side's
    edge is corrected, there. The image's border counts as an edge. Of equal pixels the first in
    reading order is taken, so that a run repeats.

    Args:
        predicted: (H, W), what was found.
        truth: (H, W).
        ignored: (H, W), pixels that count for nothing.

    Returns:
        (x, y, positive), or None where nothing is left to correct.

    Raises:
        ValueError: masks of different sizes.
    """
    from scipy.ndimage import distance_transform_edt

    if predicted.shape != truth.shape:
        raise expected("predicted", f"the truth's size {truth.shape}", str(predicted.shape))
    counted = np.ones_like(truth) if ignored is None else ~ignored
    best: tuple[float, int, int, bool] | None = None
    sides = ((True, truth & ~predicted & counted), (False, predicted & ~truth & counted))
    for positive, wrong in sides:
        if not wrong.any():
            continue
        depth = distance_transform_edt(np.pad(wrong, 1))[1:-1, 1:-1]
        y, x = np.unravel_index(int(depth.argmax()), depth.shape)
        if best is None or depth[y, x] > best[0]:
            best = (float(depth[y, x]), int(x), int(y), positive)
    return None if best is None else best[1:]
