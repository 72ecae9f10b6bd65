from __future__ import annotations

import numpy as np

from fastfss.data.palette import way_colours


def test_first_twenty_colours_are_far_apart():
    colours = way_colours(20).astype(int)
    distances = np.linalg.norm(colours[:, None] - colours[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    assert distances.min() > 75


def test_all_255_colours_differ_and_none_is_black():
    colours = way_colours(255)
    assert colours.shape == (256, 3)
    assert len(np.unique(colours, axis=0)) == 256


def test_colour_of_a_way_does_not_depend_on_the_number_of_ways():
    np.testing.assert_array_equal(way_colours(2), way_colours(40)[:3])
    assert way_colours(0).tolist() == [[0, 0, 0]]
