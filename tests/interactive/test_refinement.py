from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from fastfss.interactive import guided_filter
from fastfss.interactive.refinement import (
    GUIDED_EPS,
    GUIDED_RADIUS,
    box_means,
    edges,
    grabcut,
)


@pytest.mark.parametrize(("height", "width", "radius"), [(7, 9, 1), (20, 31, 6), (5, 3, 8)])
def test_box_means_are_those_of_pooling(height: int, width: int, radius: int) -> None:
    maps = torch.rand(2, height, width, generator=torch.Generator().manual_seed(0)).double()
    padded = F.pad(maps[None], (radius,) * 4, mode="replicate")
    wanted = F.avg_pool2d(padded, 2 * radius + 1, stride=1)[0]
    torch.testing.assert_close(box_means(maps, radius), wanted, rtol=1e-12, atol=1e-12)


def test_the_guided_filter_is_a_linear_function_of_the_image_in_each_window() -> None:
    """He, Sun, Tang, eq. 5, 6 and 8, window by window."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 40, 52), dtype=torch.uint8, generator=generator)
    probability = torch.rand(40, 52, generator=generator)
    nothing = torch.full((40, 52), 255, dtype=torch.uint8)
    radius = max(1, round(GUIDED_RADIUS * 40))
    side = 2 * radius + 1
    guide = image.double().mean(dim=0) / 255

    def windows(x: torch.Tensor) -> torch.Tensor:
        padded = F.pad(x[None, None], (radius,) * 4, mode="replicate")
        return F.unfold(padded, side)[0]  # (side^2, H W)

    i, p = windows(guide), windows(probability.double())
    covariance = ((i - i.mean(0)) * (p - p.mean(0))).mean(0)
    slope = covariance / (i.var(0, correction=0) + GUIDED_EPS)
    offset = p.mean(0) - slope * i.mean(0)
    slope, offset = (windows(x.view(40, 52)).mean(0).view(40, 52) for x in (slope, offset))
    found = guided_filter(image, probability, nothing)
    wanted = (slope * guide + offset).clamp(0, 1).float()
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_large_images_get_nearly_the_mask_of_the_whole_filter(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = pytest.importorskip("skimage.data")
    image = torch.from_numpy(data.rocket()).permute(2, 0, 1)[:, :400, :600]
    image = F.interpolate(image[None].float(), scale_factor=2, mode="bicubic")[0]
    image = image.clamp(0, 255).to(torch.uint8)
    centre = torch.zeros(800, 1200)
    centre[100:600, 560:680] = 1
    coarse = box_means(centre[None], 15)[0]
    nothing = torch.full((800, 1200), 255, dtype=torch.uint8)
    found = guided_filter(image, coarse, nothing) > 0.5
    monkeypatch.setattr("fastfss.interactive.refinement.GUIDED_SIDE", 800)
    whole = guided_filter(image, coarse, nothing) > 0.5
    assert not torch.equal(found, whole)  # else this compares nothing
    assert (found & whole).sum() / (found | whole).sum() > 0.97


def test_what_the_image_alone_decides_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, 60, 80), dtype=torch.uint8, generator=generator)
    probability, other = torch.rand(2, 60, 80, generator=generator)
    nothing = torch.full((60, 80), 255, dtype=torch.uint8)
    guided_filter(image, probability, nothing)
    counts = []
    monkeypatch.setattr(
        "fastfss.interactive.refinement.box_means",
        lambda maps, radius: counts.append(len(maps)) or box_means(maps, radius),
    )
    found = guided_filter(image, other, nothing)
    assert counts == [2, 2]
    assert torch.equal(found, guided_filter(image.clone(), other, nothing))
    image.copy_(image.flip(-1))
    assert torch.equal(
        guided_filter(image, other, nothing), guided_filter(image.clone(), other, nothing)
    )


def test_a_mask_that_misses_an_edge_moves_to_it() -> None:
    image = torch.zeros(3, 240, 320, dtype=torch.uint8)
    image[:, :, 160:] = 200
    truth = torch.zeros(240, 320, dtype=torch.bool)
    truth[:, 160:] = True
    beside = torch.zeros(240, 320)
    beside[:, 163:] = 1
    coarse = box_means(beside[None], 5)[0]
    nothing = torch.full((240, 320), 255, dtype=torch.uint8)
    assert ((coarse > 0.5) != truth).sum() == 3 * 240
    assert torch.equal(guided_filter(image, coarse, nothing) > 0.5, truth)


def test_what_was_said_stays() -> None:
    annotation = torch.full((60, 80), 255, dtype=torch.uint8)
    annotation[3, 4], annotation[5, 6] = 1, 0
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    refined = guided_filter(image, torch.full((60, 80), 0.5), annotation)
    assert (refined[3, 4], refined[5, 6]) == (1, 0)


def test_edges_are_found_in_a_band_and_nothing_runs_away_beyond_it() -> None:
    """Another thing of the object's colour is left alone, which GrabCut over the image takes."""
    pytest.importorskip("cv2")
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(20, 50, (3, 240, 320), dtype=torch.uint8, generator=generator)
    image[0, 60:180, 60:140] += 180
    image[0, 60:180, 200:280] += 180
    truth = torch.zeros(240, 320, dtype=torch.bool)
    truth[60:180, 60:140] = True
    coarse = torch.zeros(240, 320)
    coarse[64:184, 56:136] = 0.9
    nothing = torch.full((240, 320), 255, dtype=torch.uint8)
    found = edges(image, coarse, nothing) > 0.5
    wrong = (found != truth).sum()
    assert wrong < 0.2 * ((coarse > 0.5) != truth).sum()
    assert not found[:, 200:].any()
    assert (grabcut(image, coarse, nothing) > 0.5)[:, 200:].any()


def test_edges_keep_what_was_said_and_an_empty_mask_empty() -> None:
    pytest.importorskip("cv2")
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    annotation = torch.full((60, 80), 255, dtype=torch.uint8)
    assert not (edges(image, torch.zeros(60, 80), annotation) > 0.5).any()
    annotation[30, 40], annotation[5, 6] = 1, 0
    probability = torch.zeros(60, 80)
    probability[20:40, 30:50] = 1
    refined = edges(image, probability, annotation)
    assert refined[30, 40] == 1
    assert refined[5, 6] == 0
