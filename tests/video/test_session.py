from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

import fastfss.video
from fastfss import Annotation
from fastfss.video import LiveSource, MemoryConfig, VideoSession
from tests.video.clips import HEIGHT, WIDTH, clip, iou, model, session

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")


def snapshot(one: VideoSession) -> dict[int, bytes]:
    """All masks, to the last bit."""
    return {frame: one.masks(frame).tobytes() for frame in one.frames}


# ---- Following


@pytest.mark.parametrize("objects", [1, 3])
def test_objects_are_followed_from_the_masks_of_the_first_frame(objects: int) -> None:
    truth = clip(6, objects)[1]
    one = session(6, objects)
    first = one.add_labels(0, truth[0])
    assert np.array_equal(first.labels, truth[0])
    results = list(one.propagate(0))
    assert [result.frame for result in results] == [1, 2, 3, 4, 5]
    for result in results:
        for number in range(1, objects + 1):
            assert iou(result.mask(number), truth[result.frame] == number) > 0.8
            assert 0.5 < result.confidence[number] <= 1
    assert {result.seq for result in results} == {one.seq}
    assert not results[0].labels.flags.writeable


@pytest.mark.parametrize(
    ("direction", "frames"),
    [("forward", [4, 5]), ("backward", [2, 1]), ("both", [4, 5, 2, 1])],
)
def test_directions(direction: str, frames: list[int]) -> None:
    truth = clip(7)[1]
    one = session(7)
    one.add_labels(3, truth[3])
    run = one.propagate(3, direction=direction, first=1, last=5)  # type: ignore[arg-type]
    assert run.total == len(frames)
    assert [result.frame for result in run] == frames
    assert all(iou(one.masks(frame), truth[frame]) > 0.8 for frame in frames)
    assert one.frames == tuple(sorted([*frames, 3]))


def test_any_method_follows() -> None:
    truth = clip(4)[1]
    one = session(4, model=model("ssp"), memory=MemoryConfig(prior=0.1))
    one.add_labels(0, truth[0])
    for result in one.propagate(0):
        assert iou(result.labels, truth[result.frame]) > 0.5


def test_a_frame_that_is_annotated_keeps_its_mask_and_helps_the_others() -> None:
    truth = clip(6)[1]
    one = session(6)
    one.add_labels(0, truth[0])
    other = np.zeros((HEIGHT, WIDTH), np.uint8)
    other[40:55, 60:85] = 1
    one.add_mask(3, {1: other})
    results = {result.frame: result for result in one.propagate(0)}
    assert np.array_equal(results[3].labels, other)
    assert results[3].seq == one.seq


def test_a_support_from_another_image_finds_the_object() -> None:
    frames, masks = clip(3, seed=0)
    image, mask = clip(1, seed=5)
    one = fastfss.video.open(frames, model(), size=120)
    number = one.add_object("red")
    support = one.add_support(image[0], {number: mask[0]}, name="another photo")
    result = one.step(1)
    assert iou(result.labels, masks[1]) > 0.6
    one.forget(support)
    with pytest.raises(ValueError, match="propagate: expected an annotated frame or a support"):
        one.step(2)
    one.undo()
    assert one.state.supports[0].seq == support


def test_a_committed_frame_stays_known_when_its_annotation_is_cleared() -> None:
    truth = clip(4)[1]
    one = session(4)
    one.add_labels(0, truth[0])
    support = one.commit(0)
    one.clear(0)
    assert not one.masks(0).any()
    assert iou(one.step(2).labels, truth[2]) > 0.6
    one.forget(support)
    with pytest.raises(ValueError, match="propagate: expected"):
        one.propagate(0)


@pytest.mark.parametrize("kind", ["point", "stroke", "mask"])
def test_an_object_keeps_what_is_said_of_it_when_another_is_clicked(kind: str) -> None:
    one = session(2, objects=2)
    first, second = one.add_object(), one.add_object()
    truth = clip(2, 2)[1][0]
    (y, x), (v, u) = (np.argwhere(truth == n).mean(axis=0).astype(int).tolist() for n in (1, 2))
    if kind == "point":
        one.add_clicks(0, first, [(x, y)])
    elif kind == "stroke":
        one.add_scribble(0, first, [(x - 4, y), (x + 4, y)], width=2)
    else:
        one.add_mask(0, {first: truth == 1})
    found = one.add_clicks(0, second, [(u, v)]).labels
    assert found[y, x] == first and found[v, u] == second
    if kind == "mask":
        assert (found == first)[truth == 1].all()


def test_methods_with_a_trained_head_take_clicks_and_masks() -> None:
    frames, truth = clip(2)
    one = fastfss.video.open(frames, "default")
    number = one.add_object()
    y, x = np.argwhere(truth[0] == 1).mean(axis=0).astype(int).tolist()
    assert one.add_clicks(0, number, [(x, y)]).labels[y, x] == number
    one.add_mask(0, {number: truth[0]})
    assert iou(next(one.propagate(0)).labels, truth[1]) > 0.3


def test_confident_frames_are_bounded() -> None:
    truth = clip(8)[1]
    memory = MemoryConfig(confident=2, every=2, confidence=0.5)
    one = session(8, memory=memory)
    one.add_labels(0, truth[0])
    assert all(iou(result.labels, truth[result.frame]) > 0.7 for result in one.propagate(0))


@pytest.mark.parametrize("threads", [1, 2])
def test_the_number_of_threads_changes_nothing(threads: int) -> None:
    before = torch.get_num_threads()
    truth = clip(5)[1]
    found = []
    for count in (1, threads):
        torch.set_num_threads(count)
        try:
            one = session(5)
            one.add_labels(0, truth[0])
            found.append([result.labels for result in one.propagate(0)])
        finally:
            torch.set_num_threads(before)
    assert np.array_equal(found[0], found[1])


# ---- Live


def test_live_frames_are_segmented_as_they_come() -> None:
    frames, truth = clip(8)
    source = LiveSource(keep=2)
    with fastfss.video.open(source, model(), size=120) as one:
        assert one.step(frames[0]).objects == ()
        one.add_labels(0, truth[0])
        for frame, mask in zip(frames[1:], truth[1:], strict=True):
            result = one.step(frame)
            assert iou(result.labels, mask) > 0.8
        assert one.count == 8 and one.frames == tuple(range(8))
        # The annotated frame is still there, others are gone.
        one.add_clicks(0, 1, [(18, 20)])
        with pytest.raises(ValueError, match="frame: expected one of those that are kept"):
            one.add_clicks(3, 1, [(18, 20)])


# ---- Clicks


def test_a_click_answers_with_a_mask_and_a_negative_one_takes_away() -> None:
    truth = clip()[1][0]
    one = session()
    number = one.add_object()
    first = one.add_clicks(0, number, [(18, 20)])
    assert iou(first.labels, truth) > 0.6
    wrong = truth.copy()
    wrong[45:, 60:] = 1
    one.add_mask(0, {number: wrong})
    second = one.add_clicks(0, number, [(75, 52)], [0])
    assert second.mask(number).sum() < wrong.sum()
    assert not second.labels[52, 75]
    assert second.labels[20, 18]


def test_a_box_finds_what_is_in_it() -> None:
    truth = clip()[1][0]
    one = session()
    result = one.add_box(0, one.add_object(), (5, 6, 36, 36))
    assert iou(result.labels, truth) > 0.8


def test_a_scribble_and_a_replaced_annotation() -> None:
    one = session()
    number = one.add_object()
    scribbled = one.add_scribble(0, number, [(12, 15), (24, 25)])
    assert scribbled.labels[20, 18]
    again = one.add_clicks(0, number, [(70, 50)], replace=True)
    fresh = session()
    fresh.add_object()
    assert np.array_equal(again.labels, fresh.add_clicks(0, number, [(70, 50)]).labels)


def test_clicks_refine_what_propagation_gave() -> None:
    truth = clip(4)[1]
    one = session(4)
    one.add_labels(0, truth[0])
    list(one.propagate(0))
    before = one.masks(2)
    after = one.add_clicks(2, 1, [(80, 5)], [0])
    assert iou(after.labels, before) > 0.9, "far from the click all stays"


def test_objects_never_overlap_and_the_one_that_is_edited_wins() -> None:
    truth = clip(2, 2)[1]
    one = session(2, 2)
    one.add_labels(0, truth[0])
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[10:40, 10:40] = True
    result = one.add_mask(0, {2: mask})
    assert np.array_equal(result.mask(2), mask)
    assert not (result.mask(1) & mask).any()


# ---- History


def test_undo_and_redo_bring_all_masks_back_bit_for_bit() -> None:
    truth = clip(5, 2)[1]
    one = session(5, 2)
    states = [(one.seq, snapshot(one))]

    def note() -> None:
        states.append((one.seq, snapshot(one)))

    one.add_labels(0, truth[0])
    note()
    list(one.propagate(0))
    note()
    one.add_clicks(2, 1, [(24, 20)])
    note()
    list(one.propagate(2, direction="both"))
    note()
    one.remove_object(2)
    note()
    one.clear(2)
    note()
    for seq, masks in states[-2::-1]:
        one.undo()
        assert (one.seq, snapshot(one)) == (seq, masks)
    assert not one.can_undo
    for seq, masks in states[1:]:
        one.redo()
        assert (one.seq, snapshot(one)) == (seq, masks)
    assert not one.can_redo


def test_all_masks_can_be_rebuilt_from_the_events() -> None:
    truth = clip(6)[1]
    one = session(6)
    one.add_labels(0, truth[0])
    for result in one.propagate(0):
        if result.frame == 3:
            break
    one.add_clicks(2, 1, [(24, 20)])
    one.undo()
    one.redo()
    list(one.propagate(2, direction="both", last=4))
    image, mask = clip(1, seed=4)
    one.add_support(image[0], {1: mask[0]})
    one.step(5)
    before = snapshot(one)
    one.rebuild()
    assert snapshot(one) == before


def test_a_change_that_fails_changes_nothing() -> None:
    one = session()
    one.add_object()
    one.add_clicks(0, 1, [(18, 20)])
    one.undo()
    before = (len(one.history), one.seq, one.can_redo, snapshot(one))
    with pytest.raises(ValueError, match="inside of the image"):
        one.add_clicks(0, 1, [(500, 20)])
    one.tracker.source._images[0] = one.tracker.source._images[0][:-1]  # type: ignore[attr-defined]
    one.tracker.cache.clear()
    with pytest.raises(ValueError, match="frame 00000: expected 90 x 60 pixels"):
        one.add_clicks(0, 1, [(18, 20)])
    assert (len(one.history), one.seq, one.can_redo, snapshot(one)) == before


def test_numbers_of_objects_are_never_used_again() -> None:
    one = session()
    assert one.add_object("a") == 1
    assert one.add_object(number=7) == 7
    one.remove_object(7)
    assert one.add_object() == 8
    one.rename_object(8, "b")
    assert dict(one.objects) == {1: "a", 8: "b"}
    one.undo()
    assert one.objects[8] == "object 8"


def test_results_say_from_which_state_they_are() -> None:
    truth = clip(4)[1]
    one = session(4)
    one.add_labels(0, truth[0])
    list(one.propagate(0))
    seq = one.seq
    one.add_clicks(0, 1, [(18, 20)])
    stale, fresh = one.result(2), one.result(0)
    assert stale is not None and stale.seq == seq < one.seq
    assert fresh is not None and fresh.seq == one.seq


# ---- Ending early


def test_a_propagation_can_be_cancelled_and_undone() -> None:
    one = session(6)
    one.add_labels(0, clip(6)[1][0])
    flag = threading.Event()
    run = one.propagate(0, cancel=flag)
    assert next(run).frame == 1
    flag.set()
    assert list(run) == []
    assert one.frames == (0, 1)
    assert (one.history[-1].kind, one.history[-1].data["done"]) == ("stop", 1)
    one.undo()
    assert one.frames == (0,)


def test_a_change_ends_a_propagation_that_is_under_way() -> None:
    one = session(6)
    one.add_labels(0, clip(6)[1][0])
    run = one.propagate(0)
    next(run)
    one.add_object()
    assert list(run) == []


# ---- Bad input


def test_bad_input_is_named() -> None:
    one = session(3)
    one.add_object()
    bad = [
        (lambda: one.add_clicks(3, 1, [(1, 1)]), "frame: expected 0 to 2, a frame of 'images'"),
        (lambda: one.add_clicks(-1, 1, [(1, 1)]), "frame: expected 0 to 2"),
        (lambda: one.add_clicks(0, 2, [(1, 1)]), "object: expected one of 1, got 2"),
        (lambda: one.add_clicks(0, 1, []), "labels: expected 0 or 1"),
        (lambda: one.add_clicks(0, 1, [(1, 1)], [2]), "labels: expected 0 or 1"),
        (lambda: one.annotate(0, 1, Annotation()), "annotation: expected at least one mark"),
        (lambda: one.add_labels(0, np.zeros((3, 3), int)), "labels: expected"),
        (lambda: one.add_labels(0, np.zeros((HEIGHT, WIDTH), int)), "only background"),
        (lambda: one.add_labels(0, np.full((HEIGHT, WIDTH), 300)), "labels: expected numbers"),
        (lambda: one.add_mask(0, {}), "masks: expected at least one"),
        (lambda: one.add_mask(0, {1: np.ones((3, 3), bool)}), "3 rows x 3 columns"),
        (lambda: one.add_object(number=1), "number: expected 1 to 254, not used before"),
        (lambda: one.remove_object(9), "object: expected one of 1"),
        (lambda: one.clear(0), "frame: expected one of which something is said"),
        (lambda: one.commit(0), "frame: expected one with masks"),
        (lambda: one.forget(4), "support: expected one of none, got 4"),
        (lambda: one.propagate(0), "propagate: expected an annotated frame"),
        (lambda: one.propagate(0, direction="up"), "direction: expected one of"),  # type: ignore[arg-type]
        (lambda: one.propagate(2, last=1), "start: expected 0 to 1, got 2"),
        (lambda: VideoSession(one.source, model(), size=8), "size: expected at least 32"),
        (lambda: MemoryConfig(recent=-1), "memory: expected"),
    ]
    for call, message in bad:
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(TypeError, match="object: expected the number of an object, got 'cat'"):
        one.add_clicks(0, "cat", [(1, 1)])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="image: expected the number of a frame"):
        one.step(Image.new("RGB", (WIDTH, HEIGHT)))
    assert one.seq == 1


# ---- Bounds


def test_features_stay_within_their_bytes_and_annotated_frames_are_kept() -> None:
    one = session(8, cache_bytes=0)
    one.add_labels(0, clip(8)[1][0])
    list(one.propagate(0))
    assert 0 in one.tracker.cache
    assert len(one.tracker.cache) <= 3
    kept = one.stats()
    assert kept["results"]["frames"] == 8
    assert kept["seconds"]["encode"]["count"] == 8
    assert kept["cache"]["bytes"] == one.tracker.cache.nbytes > 0
