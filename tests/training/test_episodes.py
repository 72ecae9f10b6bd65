from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fastfss.data.sets import MaskSet, open_set
from fastfss.training import train
from fastfss.training.data import EpisodeNumbers, prepare_data
from fastfss.training.episodes import Batch, EpisodeDataset, joined
from fastfss.training.recipe import Recipe
from tests.training.shapes import tiny_recipe


@pytest.fixture(scope="module")
def images(shapes: Path) -> MaskSet:
    return open_set("folder", shapes)


def dataset(recipe: Recipe, images: MaskSet) -> EpisodeDataset:
    data = prepare_data(recipe, images, images)
    return EpisodeDataset(images, data.split, data.sampler, recipe.data, recipe.transform)


def values(tensor: Tensor) -> set[int]:
    return set(tensor.unique().tolist())


def batches(shapes: Path, images: MaskSet, count: int = 40, **data: Any) -> list[Batch]:
    config = {"reserved": 0.0, **data}
    made = dataset(tiny_recipe(shapes, data=config, transform={"size": 40}), images)
    return [made[number] for number in range(count)]


def test_shapes_and_kinds(shapes: Path, images: MaskSet) -> None:
    config = {"shots": 2, "ways": 2, "sampler": "class"}
    batch = joined(batches(shapes, images, 3, **config))
    assert batch.support.shape == (3, 2, 2, 3, 40, 40)
    assert batch.support_mask.shape == batch.backgrounds.shape == (3, 2, 2, 40, 40)  # type: ignore[union-attr]
    assert batch.query.shape == (3, 3, 40, 40) and batch.query_mask.shape == (3, 40, 40)
    assert batch.classes.shape == (3, 2) and batch.classes.dtype == torch.int64
    assert batch.support.dtype == batch.query_mask.dtype == torch.uint8
    assert batch.support_labels is None and batch.maps is None


def test_several_ways_are_numbered_and_what_is_of_none_is_background(
    shapes: Path, images: MaskSet
) -> None:
    made = batches(shapes, images, ways=2, sampler="class")
    assert {1, 2} <= set().union(*(values(batch.query_mask) for batch in made)) <= {0, 1, 2, 255}
    for batch in made:
        assert batch.backgrounds is not None
        assert not bool(((batch.support_mask == 1) & (batch.backgrounds == 1)).any())


@pytest.mark.parametrize("void, seen", [("ignored", True), ("background", False)])
def test_pixels_of_255_are_what_the_recipe_says(
    void: str, seen: bool, shapes: Path, images: MaskSet
) -> None:
    made = batches(shapes, images, void=void)
    for name in ("support_mask", "query_mask"):
        assert any(255 in values(getattr(batch, name)) for batch in made) == seen


def test_held_out_classes_are_background_or_ignored(shapes: Path, images: MaskSet) -> None:
    common = {"void": "background", "split_seed": 1}
    plain = batches(shapes, images, **common)
    hidden = batches(shapes, images, **common, held_out="ignored")
    split = prepare_data(
        tiny_recipe(shapes, data={"reserved": 0.0, **common}), images, images
    ).split
    changed = 0
    for one, other in zip(plain, hidden, strict=True):
        assert 255 not in values(one.query_mask)
        assert torch.equal(one.support_mask, other.support_mask)
        assert torch.equal(one.query_mask == 1, other.query_mask == 1)
        changed += 255 in values(other.query_mask)
        assert int(one.classes[0, 0]) in split.base
    assert changed


@pytest.mark.parametrize("held_out", ["ignored", "background"])
def test_label_maps_hold_no_held_out_class(held_out: str, shapes: Path, images: MaskSet) -> None:
    config = {"labels": "ids", "held_out": held_out, "void": "background"}
    made = batches(shapes, images, **config)
    recipe = tiny_recipe(shapes, data={"reserved": 0.0, **config})
    split = prepare_data(recipe, images, images).split
    seen: set[int] = set()
    for batch in made:
        assert batch.query_labels is not None and batch.support_labels is not None
        seen |= values(batch.query_labels) | values(batch.support_labels)
        own = batch.query_labels[batch.query_mask == 1]
        assert own.eq(batch.classes[0, 0]).all()
    assert seen == {0, *split.base} | ({255} if held_out == "ignored" else set())


def test_the_semantic_branchs_labels_count_base_classes(shapes: Path, images: MaskSet) -> None:
    made = batches(shapes, images, labels="base", void="background")
    supports = set().union(*(values(b.support_labels) for b in made))  # type: ignore[arg-type]
    queries = set().union(*(values(b.query_labels) for b in made))  # type: ignore[arg-type]
    assert supports == set(range(7)), "what is held out is background in supports"
    assert queries == {*range(7), 255}, "and ignored in queries"


@pytest.mark.parametrize("points", [1, 3, "random"])
def test_supports_may_be_annotated_by_points(points: Any, shapes: Path, images: MaskSet) -> None:
    made = batches(shapes, images, 10, points=points, void="background")
    counts = [[int((b.support_mask == value).sum()) for value in (0, 1)] for b in made]
    assert all(0 in values(b.query_mask) and 255 not in values(b.query_mask) for b in made)
    if points == "random":
        assert len({first for first, _ in counts}) > 3 and max(map(max, counts)) < 100
    else:
        assert all(count in (0, points) for pair in counts for count in pair)


@pytest.mark.parametrize("kind", ["square", "crop", "native"])
@pytest.mark.parametrize("points", ["dense", 3])
def test_an_interactive_support_is_the_query_as_it_is_seen(
    points: Any, kind: str, shapes: Path, images: MaskSet
) -> None:
    recipe = tiny_recipe(
        shapes,
        "guided-late",
        data={"sampler": "interactive", "points": points, "reserved": 0.0},
        transform={"kind": kind, "size": 40, "flip": 0.5},
        run={"steps": 1, "batch": 1},
    )
    made = dataset(recipe, images)
    annotated = 0
    for number in range(12):
        batch = made[number]
        said, truth = batch.support_mask[0, 0, 0], batch.query_mask[0]
        assert torch.equal(batch.support[0, 0, 0], batch.query[0])
        assert torch.equal(said[said != 255], truth[said != 255])
        annotated += int((said != 255).sum())
        if points == "dense":
            assert torch.equal(said, truth)
        else:
            assert all(int((said == value).sum()) in (0, points) for value in (0, 1))
    assert annotated


def test_where_all_classes_are_learned_reserved_images_are_measured(
    shapes: Path, images: MaskSet
) -> None:
    recipe = tiny_recipe(
        shapes,
        "guided-late",
        data={"sampler": "interactive", "folds": "none"},
        validation={"every": 1, "minimum": 20},
    )
    data = prepare_data(recipe, images, images)
    learned = {n for members in data.sampler.large.values() for n in members}
    measured = {n for members in data.held_out.values() for n in members}
    assert data.sampler.large.keys() == images.classes.keys()
    assert data.held_out.keys() <= images.classes.keys()
    assert measured and not learned & measured


def test_images_may_stay_as_they_are(shapes: Path, images: MaskSet) -> None:
    recipe = tiny_recipe(shapes, transform={"kind": "native"}, run={"steps": 1, "batch": 1})
    made = dataset(recipe, images)
    batch, drawn = made[0], made.sampler.draw(0)
    assert batch.query.shape[1:] == images.image(drawn.query).shape
    assert batch.support.shape[3:] == images.image(drawn.supports[0][0]).shape


def test_single_images_come_without_support(shapes: Path, images: MaskSet) -> None:
    batch = joined(batches(shapes, images, 3, sampler="single", labels="ids", episodes=20))
    assert batch.support.shape == (3, 1, 0, 3, 40, 40)
    assert batch.query_labels is not None and batch.query_labels.shape == (3, 40, 40)


def test_images_of_an_episode_are_mirrored_one_by_one(shapes: Path, images: MaskSet) -> None:
    made = dataset(tiny_recipe(shapes, transform={"flip": 0.5}), images)
    plain = dataset(tiny_recipe(shapes, transform={"flip": 0.0}), images)
    seen = set()
    for number in range(16):
        one, other = made[number], plain[number]
        sides = []
        for name in ("support", "query"):
            flipped, as_it_is = getattr(one, name), getattr(other, name)
            mirrored = torch.equal(flipped, as_it_is.flip(-1))
            assert mirrored or torch.equal(flipped, as_it_is)
            sides.append(mirrored)
        seen.add(tuple(sides))
    assert len(seen) == 4


def test_a_loader_process_of_any_kind_gets_the_same_episodes(shapes: Path, images: MaskSet) -> None:
    # Where processes are not forked, they get a pickled copy.
    made = dataset(tiny_recipe(shapes, transform={"kind": "pfenet", "size": 33}), images)
    copy = pickle.loads(pickle.dumps(made))
    for number in range(4):
        assert torch.equal(copy[number].query, made[number].query)
        assert torch.equal(copy[number].support_mask, made[number].support_mask)


def test_reserved_images_are_not_trained_on(shapes: Path, images: MaskSet) -> None:
    recipe = tiny_recipe(shapes, validation={"every": 1, "minimum": 20})
    data = prepare_data(recipe, images, images)
    learned = {n for members in data.sampler.large.values() for n in members}
    held_out = {n for members in data.held_out.values() for n in members}
    assert learned and held_out and not learned & held_out
    assert not set(data.held_out) & set(data.sampler.large)


@pytest.mark.parametrize(
    "folds, fold, wanted",
    [("contiguous", 1, [3, 4]), ("interleaved", 1, [2, 6]), ("none", 0, [])],
)
def test_folds(folds: str, fold: int, wanted: list[int], shapes: Path, images: MaskSet) -> None:
    recipe = tiny_recipe(shapes, data={"folds": folds, "fold": fold})
    split = prepare_data(recipe, images, images).split
    assert list(split.held_out) == wanted
    assert sorted({*split.base, *split.held_out}) == list(range(1, 9))


def test_random_folds_hold_every_class_out_once(shapes: Path, images: MaskSet) -> None:
    held_out = [
        number
        for fold in range(3)
        for number in prepare_data(
            tiny_recipe(shapes, data={"splits": 3, "fold": fold}), images, images
        ).split.held_out
    ]
    assert sorted(held_out) == list(range(1, 9))


def test_parts_with_the_same_class_are_refused(shapes: Path, images: MaskSet) -> None:
    with pytest.raises(ValueError, match=r"data\.folds: expected sets whose parts have other"):
        prepare_data(tiny_recipe(shapes, data={"folds": "parts"}), images, images)


def test_a_share_of_the_image_may_be_asked_for(shapes: Path, images: MaskSet) -> None:
    recipe = tiny_recipe(shapes, data={"minimum_share": 0.12, "skip_rare": True})
    for number, members in prepare_data(recipe, images, images).sampler.large.items():
        for image in members:
            mask = images.mask(image, number)
            assert (mask == 1).sum() >= 0.12 * mask.numel()


def test_validation_may_follow_a_protocol(shapes: Path, images: MaskSet, tmp_path: Path) -> None:
    validation = {"every": 2, "protocol": "classes", "episodes": 2}
    recipe = tiny_recipe(shapes, data={"reserved": 0.0}, validation=validation)
    data = prepare_data(recipe, images, images)
    assert data.published is not None
    assert data.published.episodes.classes == data.split.held_out
    result = train(recipe, tmp_path, device="cpu", progress="off")
    assert [step for step, _ in result.miou] == [2, 4, 6]


def test_a_protocol_that_tests_what_is_learned_is_refused(shapes: Path, images: MaskSet) -> None:
    recipe = tiny_recipe(
        shapes,
        data={"reserved": 0.0, "folds": "contiguous"},
        validation={"every": 2, "protocol": "classes", "episodes": 2},
    )
    with pytest.raises(ValueError, match=r"validation\.protocol: .*no class that is learned"):
        prepare_data(recipe, images, images)


def test_no_held_out_image_is_an_error_before_training(shapes: Path, images: MaskSet) -> None:
    recipe = tiny_recipe(shapes, validation={"every": 1, "minimum": 10**6})
    with pytest.raises(
        ValueError, match="a class to measure with at least 2 held-out images, got none of 2"
    ):
        prepare_data(recipe, images, images)


@pytest.mark.parametrize("count, parts", [(1, 1), (2, 1), (2, 3), (3, 2)])
def test_all_processes_together_take_the_episodes_of_one(
    count: int, parts: int, shapes: Path
) -> None:
    recipe = tiny_recipe(shapes, run={"steps": 5, "batch": 12, "accumulate": parts})
    shares = [list(EpisodeNumbers(recipe, rank, count, 2, 5)) for rank in range(count)]
    assert all(len(share) == 3 * parts == len(EpisodeNumbers(recipe, 0, count, 2, 5))
               for share in shares)  # fmt: skip
    for step in range(3):
        taken = [n for share in shares for part in share[step * parts : (step + 1) * parts]
                 for n in part]  # fmt: skip
        assert sorted(taken) == list(range((step + 2) * 12, (step + 3) * 12))
