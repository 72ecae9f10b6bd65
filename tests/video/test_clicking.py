"""Clicks in videos that a model of their own answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import fastfss
import fastfss.video
from fastfss.annotation import Annotation
from fastfss.video.clicking import ClickModel
from fastfss.weights.check import scene
from tests.video.clips import clip


@pytest.fixture(scope="module")
def frames() -> list[np.ndarray]:
    image, _ = scene("star", 1)
    return [np.roll(image, 2 * t, axis=1) for t in range(3)]


@pytest.fixture(scope="module")
def truth() -> np.ndarray:
    return scene("star", 1)[1] == 1


def opened(frames: list[np.ndarray], **options: object) -> fastfss.video.VideoSession:
    return fastfss.video.open(frames, size=96, **options)  # type: ignore[arg-type]


def middle(mask: np.ndarray) -> tuple[float, float]:
    y, x = np.argwhere(mask).mean(axis=0)
    return float(x), float(y)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def test_the_default_model_answers_the_clicks_of_a_session_without_choices(frames, truth) -> None:
    session = opened(frames)
    assert session.about["clicks"]["method"] == "cue-fusion"
    star = session.add_object("star")
    result = session.add_clicks(0, star, [middle(truth)])
    for _ in range(4):
        click = fastfss.interactive.next_click(result.mask(star), truth)
        assert click is not None
        result = session.add_clicks(0, star, [click[:2]], [int(click[2])])
    assert iou(result.mask(star), truth) > 0.65
    followed = list(session.propagate(0))
    assert all(one.mask(star).any() for one in followed)


def test_undo_and_rebuild_bring_masks_back_bit_for_bit(frames, truth) -> None:
    session = opened(frames)
    star = session.add_object("star")
    masks = [session.add_clicks(0, star, [(60 + 25 * n, 90)], [n != 1]).labels for n in range(3)]
    session.undo()
    assert np.array_equal(session.masks(0), masks[1])
    session.redo()
    assert np.array_equal(session.masks(0), masks[2])
    session.rebuild()
    assert np.array_equal(session.masks(0), masks[2])


def test_a_mask_that_was_given_is_corrected_around_a_click_alone(frames, truth) -> None:
    session = opened(frames)
    star = session.add_object("star")
    given = truth.copy()
    given[:20, :20] = True  # a mistake, far from the star
    session.add_mask(0, {star: given})
    corrected = session.add_clicks(0, star, [(9, 9)], [0]).mask(star)
    assert not corrected[9, 9]
    assert iou(corrected & truth, truth) > 0.9


def test_a_click_on_the_background_alone_finds_nothing(frames) -> None:
    session = opened(frames)
    star = session.add_object("star")
    assert not session.add_clicks(0, star, [(5, 5)], [0]).mask(star).any()


def test_a_model_without_hints_is_refused(frames) -> None:
    ssp = fastfss.create_model("ssp", encoder="resnet18", layers=("layer2",))
    with pytest.raises(ValueError, match="click_model: expected a model that takes hints"):
        ClickModel(ssp)


def test_nothing_said_is_nothing_found(frames) -> None:
    clicks = ClickModel(fastfss.create_model("default", size=96).for_inference())
    image = np.ascontiguousarray(frames[0].transpose(2, 0, 1))
    features = clicks.encode(torch.from_numpy(image))
    assert not clicks.answer(features, Annotation(), None, (192, 192)).any()


def test_a_frame_that_was_prepared_is_not_encoded_by_a_click() -> None:
    frames, truth = clip(3)
    one = fastfss.video.open(frames)
    number = one.add_object()
    assert not one.tracker.prepared(1)
    one.tracker.prepare_click(1)
    assert one.tracker.prepared(1) and not one.tracker.prepared(0)
    y, x = np.argwhere(truth[1] == 1).mean(axis=0).tolist()
    encoded = one.stats()["seconds"]["encode"]["count"]
    one.add_clicks(1, number, [(x, y)])
    assert one.stats()["seconds"]["encode"]["count"] == encoded
    one.add_clicks(0, number, [(x, y)])
    assert one.stats()["seconds"]["encode"]["count"] > encoded
