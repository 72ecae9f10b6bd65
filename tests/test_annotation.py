from __future__ import annotations

import numpy as np
import pytest
import torch

import fastfss
from fastfss import Annotation
from fastfss.annotation import annotation_mask

SIZE = (40, 60)


def test_a_point_is_one_pixel_or_a_disk() -> None:
    said = Annotation().point(30, 20).rasterize(SIZE)
    assert said.dtype == torch.uint8 and said[20, 30] == 1
    assert (said != 255).sum() == 1
    disk = Annotation().point(30, 20).rasterize(SIZE, width=9) == 1
    rows, columns = disk.any(dim=1).nonzero(), disk.any(dim=0).nonzero()
    assert 8 <= len(rows) <= 10 and 8 <= len(columns) <= 10
    assert not disk[15, 25], "no square"


def test_the_later_mark_wins_on_one_pixel() -> None:
    said = Annotation().point(5, 5).point(5, 5, positive=False)
    assert said.rasterize(SIZE)[5, 5] == 0
    assert said.point(5, 5).rasterize(SIZE)[5, 5] == 1


def test_strokes_are_lines_of_a_width() -> None:
    said = Annotation().stroke([(5, 10), (50, 10)], width=3).rasterize(SIZE)
    assert (said[10, 5:51] == 1).all()
    assert (said[:8] == 255).all() and (said[13:] == 255).all()


def test_outside_of_boxes_is_background_where_nothing_else_is_said() -> None:
    said = Annotation().box(10, 5, 30, 25).box(40, 5, 60, 25).point(5, 30).rasterize(SIZE)
    assert (said[5:25, 10:30] == 1).all() and (said[5:25, 40:60] == 1).all()
    assert said[10, 35] == 0 and said[30, 5] == 1 and said[4, 10] == 0
    assert not (said == 255).any()


def test_masks_say_what_they_say() -> None:
    mask = torch.full(SIZE, 255, dtype=torch.uint8)
    mask[:10], mask[30:] = 1, 0
    said = Annotation().point(3, 3, positive=False).area(mask)
    assert torch.equal(said.rasterize(SIZE), mask)
    assert said.point(3, 3, positive=False).rasterize(SIZE)[3, 3] == 0
    assert said.positive and not Annotation().area(torch.where(mask == 1, 0, mask)).positive


def test_annotations_do_not_change() -> None:
    first = Annotation().point(1, 2)
    second = first.point(3, 4)
    assert len(first) == 1 and len(second) == 2
    assert second.without_last() == first


def test_json_brings_everything_back() -> None:
    mask = (torch.rand(SIZE, generator=torch.Generator().manual_seed(0)) > 0.7).to(torch.uint8)
    mask[0, :7] = 255
    said = (
        Annotation()
        .area(mask)
        .point(1.5, 2, width=4)
        .stroke([(3, 3), (9, 20)], positive=False)
        .box(1, 2, 30, 20)
    )
    again = Annotation.from_json(said.to_json())
    assert torch.equal(again.rasterize(SIZE), said.rasterize(SIZE))
    assert len(again) == 4
    for text in ("{", '{"format": "other"}', '{"format": "fastfss-annotation-1", "marks": [{}]}'):
        with pytest.raises(ValueError, match=r"annotation: expected JSON of Annotation.to_json"):
            Annotation.from_json(text)


@pytest.mark.parametrize(("unsaid", "background"), [("ignored", 0), ("background", 1)])
def test_what_is_not_said(unsaid: str, background: int) -> None:
    mask = annotation_mask(Annotation().point(30, 20), SIZE, unsaid=unsaid)  # type: ignore[arg-type]
    assert (mask == 1).any()
    assert bool((mask == 0).any()) == bool(background)


def test_auto_ignores_where_background_is_said() -> None:
    alone = annotation_mask(Annotation().point(30, 20), SIZE)
    assert not (alone == 255).any()
    both = annotation_mask(Annotation().point(30, 20).point(5, 5, positive=False), SIZE)
    assert (both == 255).any() and both[5, 5] == 0


def test_the_border_is_a_frame() -> None:
    mask = annotation_mask(Annotation().point(0, 0), SIZE, unsaid="border")
    assert mask[0, 0] == 1 and mask[39, 59] == 0 and mask[20, 30] == 255


def test_bad_marks_are_named() -> None:
    for mark in (Annotation().point(60, 5), Annotation().stroke([(3, 3), (-1, 5)])):
        with pytest.raises(
            ValueError, match=r"marks\[0\]: expected points inside of the image, 60"
        ):
            mark.rasterize(SIZE)
    with pytest.raises(ValueError, match="pairs of finite numbers"):
        Annotation().point(float("nan"), 3)
    with pytest.raises(ValueError, match="left < right and top < bottom"):
        Annotation().box(30, 5, 10, 25)
    with pytest.raises(ValueError, match="width: expected a positive number"):
        Annotation().stroke([(1, 1)], width=0)
    with pytest.raises(ValueError, match="a mark to take back, got none"):
        Annotation().without_last()
    with pytest.raises(ValueError, match=r"mask: expected \(H, W\) of"):
        Annotation().area(torch.full(SIZE, 7))
    with pytest.raises(ValueError, match="a mask of 40 x 60, got 3 x 3"):
        Annotation().area(torch.ones(3, 3)).rasterize(SIZE)
    with pytest.raises(ValueError, match="at least one positive mark, got only background"):
        annotation_mask(Annotation().point(3, 3, positive=False), SIZE)
    with pytest.raises(ValueError, match="at least one positive mark, got nothing"):
        annotation_mask(Annotation(), SIZE)


@pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")
@pytest.mark.parametrize("method", ["ssp", "panet", "mlc"])
def test_fit_takes_annotations_beside_masks(method: str) -> None:
    torch.manual_seed(0)
    model = fastfss.create_model(method, encoder="resnet18", layers=("layer2",), size=64)
    image, mask = torch.rand(3, 48, 64), np.zeros((48, 64), np.uint8)
    mask[10:30, 20:50] = 1
    said = Annotation().point(30, 20).point(3, 3, positive=False)
    task = model.fit([(image, mask), (image, said)])
    assert task.shots == 2
    assert model.predict(image, task).labels.shape == (48, 64)
    with pytest.raises(ValueError, match=r"shots\[0\] mask: expected at least one positive mark"):
        model.fit([(image, Annotation())])


def test_a_place_lies_in_the_pixel_around_it() -> None:
    said = Annotation().point(59.9, 39.9).rasterize(SIZE)
    assert said[39, 59] == 1 and (said != 255).sum() == 1
    with pytest.raises(
        ValueError, match=r"points inside of the image, 60 pixels wide .* \(60, 2\)"
    ):
        Annotation().point(60, 2).rasterize(SIZE)


def test_positive_marks_under_later_ones_are_no_object() -> None:
    said = Annotation().point(5, 5).point(5, 5, positive=False)
    with pytest.raises(ValueError, match="later marks cover all positive ones"):
        annotation_mask(said, SIZE)


def test_masks_may_be_arrays_of_truth_values() -> None:
    mask = np.zeros(SIZE, bool)
    mask[3:9, 4:8] = True
    assert torch.equal(Annotation().area(mask).rasterize(SIZE), torch.from_numpy(mask).byte())
