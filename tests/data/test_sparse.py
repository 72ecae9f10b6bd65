from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fastfss.data.sets import MaskSet, open_set
from fastfss.data.sparse import (
    DENSE,
    MaskItem,
    balanced_items,
    class_episode,
    class_of_object,
    cut_out,
    interactive_episode,
    mask_items,
    object_episode,
    one_object,
    single_object,
    sparsify,
)


def labels_of(height: int = 30, width: int = 40) -> Tensor:
    """Background, object 1 of 60 pixels, object 2 of 3 pixels, a line of 255."""
    labels = torch.zeros(height, width, dtype=torch.uint8)
    labels[4:10, 5:15] = 1
    labels[20, 20:23] = 2
    labels[25] = 255
    return labels


@pytest.mark.parametrize("count", [0, 1, 3, 60])
def test_every_value_gets_so_many_points_or_none(count: int) -> None:
    labels = labels_of()
    kept = sparsify(labels, count, random.Random(1))
    for value in (0, 1, 2):
        pixels = int((labels == value).sum())
        assert (kept == value).sum() == (count if pixels >= count else 0)
    chosen = kept != 255
    assert torch.equal(kept[chosen], labels[chosen])


def test_points_are_drawn_uniformly_and_anew_each_time() -> None:
    generator, hits = random.Random(0), torch.zeros(30, 40)
    for _ in range(600):
        hits += sparsify(labels_of(), 2, generator) == 1
    inside = hits[4:10, 5:15]
    assert hits.sum() == inside.sum() == 1200
    # Each of 60 pixels 20 times on average; five deviations.
    assert (inside - 20).abs().max() < 5 * 20**0.5


def test_a_count_that_is_not_given_is_drawn_from_0_to_99() -> None:
    labels = torch.zeros(20, 20, dtype=torch.uint8)
    generator = random.Random(0)
    counts = [int((sparsify(labels, None, generator) == 0).sum()) for _ in range(800)]
    assert set(counts) <= set(range(100))
    assert min(counts) == 0
    assert max(counts) == 99
    assert 45 < np.mean(counts) < 54


def test_dense_labels_stay_and_seeds_decide() -> None:
    labels = labels_of()
    assert torch.equal(sparsify(labels, DENSE, random.Random(0)), labels)
    first, again, other = (sparsify(labels, 5, random.Random(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_one_object_is_drawn_and_the_others_are_background_or_unsaid() -> None:
    labels, found = labels_of(), set()
    for seed in range(20):
        target, annotation = one_object(labels, random.Random(seed))
        value = 1 if target[5, 5] == 1 else 2
        found.add(value)
        other = labels == 3 - value
        assert torch.equal(target == 1, labels == value)
        assert torch.equal(annotation == 1, labels == value)
        assert (target[other] == 0).all()
        assert (annotation[other] == 255).all()
        assert torch.equal(target == 255, labels == 255)
        assert torch.equal(annotation == 0, labels == 0)
    assert found == {1, 2}
    empty = torch.zeros(3, 3, dtype=torch.uint8)
    assert torch.equal(one_object(empty, random.Random(0))[0], empty)
    assert torch.equal(single_object(labels, 2)[20, 19:24], torch.tensor([0, 1, 1, 1, 0]).byte())


def test_an_objects_class_is_the_one_that_most_of_its_pixels_have() -> None:
    labels = labels_of()
    region = torch.zeros(30, 40, dtype=torch.bool)
    region[8:26, 5:25] = True  # 20 pixels of 1, 3 of 2, more of 0 and 255
    assert class_of_object(labels, region) == 1
    region[:20] = False
    assert class_of_object(labels, region) == 2
    region[:] = False
    assert class_of_object(labels, region) == 0


@pytest.mark.parametrize("size", [(120, 200), (20, 20), (64, 300)], ids=str)
def test_a_cut_out_holds_the_whole_object_and_its_own_pixels(size: tuple[int, int]) -> None:
    height, width = size
    labels = torch.zeros(size, dtype=torch.uint8)
    labels[height // 2 : height // 2 + 7, width // 3 : width // 3 + 5] = 1
    labels[0, 0] = 255
    image = torch.randint(256, (3, *size), generator=torch.Generator().manual_seed(0)).byte()
    sizes, generator = set(), random.Random(0)
    for _ in range(60):
        cut, cut_labels = cut_out(image, labels, generator)
        assert cut.shape[1:] == cut_labels.shape
        assert min(cut_labels.shape) >= 33  # what the networks take at least
        assert max(cut_labels.shape) <= 64 + 2 * 64
        assert (cut_labels == 1).sum() == 35
        assert torch.equal(cut[:, cut_labels == 1], image[:, labels == 1])
        outside = (cut == torch.tensor([123, 117, 104]).byte()[:, None, None]).all(0)
        assert (cut_labels[outside] == 0).all()
        sizes.add(tuple(cut_labels.shape))
    assert len(sizes) > 20
    with pytest.raises(ValueError, match="labels: expected an object to cut out, got none"):
        cut_out(image, torch.zeros_like(labels), generator)
    with pytest.raises(ValueError, match=r"image: expected \(3, .*\) as the labels have"):
        cut_out(image[:, 1:], labels, generator)


@pytest.fixture
def data(tmp_path: Path) -> MaskSet:
    """A folder of six images of two classes; class 2 is in two of them."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    (tmp_path / "classes.txt").write_text("cow\nsheep\n")
    for number in range(6):
        labels = np.zeros((40 + number, 50), np.uint8)
        labels[5:20, 5:25] = 1
        if number in (1, 4):
            labels[25:35, 30:45] = 2
        pixels = np.full((40 + number, 50, 3), number, np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        Image.fromarray(labels).save(tmp_path / "masks" / f"{number}.png")
    return open_set("folder", tmp_path)


def test_queries_are_every_mask_once_or_equally_many_a_class(data: MaskSet) -> None:
    index = data.index()
    items = mask_items(index)
    assert len(items) == len(set(items)) == 8
    balanced = balanced_items(index, random.Random(0))
    assert [item.cls for item in balanced] == [1, 1, 2, 2]
    assert set(balanced) <= set(items)
    assert balanced != balanced_items(index, random.Random(1))


def test_a_class_episode_has_supports_of_the_class_perhaps_the_query_itself(data: MaskSet) -> None:
    index, item, seen = data.index(), MaskItem(4, 2), set()
    for seed in range(20):
        episode = class_episode(data, index, item, random.Random(seed), shots=3, count=2)
        assert [int((one == 1).sum()) for one in episode.annotations] == [2, 2, 2]
        assert [int((one == 0).sum()) for one in episode.annotations] == [2, 2, 2]
        assert torch.equal(episode.query, data.image(4))
        assert torch.equal(episode.target, data.mask(4, 2))
        for image, annotation in zip(episode.supports, episode.annotations, strict=True):
            assert image.shape[1:] == annotation.shape
            seen.add(int(image[0, 0, 0]))
    assert seen == {1, 4}


def test_an_object_episode_has_cuts_of_the_query(data: MaskSet) -> None:
    episode = object_episode(data, MaskItem(1, 2), random.Random(0), shots=2, count=DENSE)
    for image, annotation in zip(episode.supports, episode.annotations, strict=True):
        assert (annotation == 1).sum() == (episode.target == 1).sum() == 150
        assert (image[:, annotation == 1] == 1).all()


def test_an_interactive_episode_annotates_the_query(data: MaskSet) -> None:
    episode = interactive_episode(data, MaskItem(1, 1), random.Random(0), count=3)
    assert torch.equal(episode.supports[0], episode.query)
    kept = episode.annotations[0] != 255
    assert kept.sum() == 6
    assert torch.equal(episode.annotations[0][kept], episode.target[kept])


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match=r"labels: expected \(H, W\) uint8, got \(2, 3\) int64"):
        sparsify(torch.zeros(2, 3, dtype=torch.int64), 1, random.Random(0))
    with pytest.raises(ValueError, match="count: expected a number of points, -1 for all, or None"):
        sparsify(labels_of(), -2, random.Random(0))
    with pytest.raises(ValueError, match="shots: expected at least 1, got 0"):
        class_episode(None, {}, MaskItem(0, 1), random.Random(0), shots=0)  # type: ignore[arg-type]
