"""The colours of the ways: one list for label files and overlays."""

from __future__ import annotations

import colorsys

import numpy as np
import numpy.typing as npt

# The first are bright and saturated, so that they stand out from natural colours; from the
# thirteenth on each is the one farthest (in CIELAB) from all before it.
_CHOSEN = (
    (255, 0, 170),  # magenta
    (0, 200, 255),  # sky
    (255, 220, 0),  # yellow
    (0, 230, 60),  # green
    (255, 90, 0),  # orange
    (130, 60, 255),  # violet
    (255, 150, 200),  # pink
    (0, 130, 125),  # teal
    (225, 0, 30),  # red
    (30, 70, 255),  # blue
    (170, 255, 120),  # lime
    (150, 85, 0),  # brown
    (60, 75, 150),  # slate
    (255, 240, 195),  # cream
    (30, 255, 210),  # turquoise
    (150, 0, 60),  # wine
    (135, 150, 60),  # olive
    (135, 15, 150),  # plum
    (255, 0, 255),  # fuchsia
    (180, 135, 120),  # clay
)
_GOLDEN_RATIO = 0.618033988749895


def way_colours(count: int) -> npt.NDArray[np.uint8]:
    """Return the colours of background and ways.

    Args:
        count: the number of ways.

    Returns:
        (count + 1, 3) uint8 RGB: row 0 is black, for the background, row n the colour of way n. The
        colour of a way does not depend on ``count``.

    Examples:
        >>> way_colours(2).tolist()
        [[0, 0, 0], [255, 0, 170], [0, 200, 255]]
    """
    rows: list[tuple[int, int, int]] = [(0, 0, 0), *_CHOSEN[:count]]
    # Beyond the chosen ones hues go round by the golden ratio, which never comes back to the same
    # hue, at two brightnesses and two saturations.
    for n in range(len(_CHOSEN), count):
        red, green, blue = colorsys.hsv_to_rgb(
            (n * _GOLDEN_RATIO) % 1.0, (1.0, 0.55)[n % 2], (1.0, 0.7)[n // 2 % 2]
        )
        rows.append((round(red * 255), round(green * 255), round(blue * 255)))
    return np.array(rows, dtype=np.uint8)
