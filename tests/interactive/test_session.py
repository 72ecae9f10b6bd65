from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor

from fastfss import Annotation, create_model
from fastfss.interactive import InteractiveSession
from fastfss.methods import FewShotSegmenter

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")


@cache
def model(method: str = "mlc") -> FewShotSegmenter:
    torch.manual_seed(0)
    return create_model(method, encoder="resnet18", layers=("layer1",), size=97)


def picture(seed: int = 0) -> Tensor:
    """A bright square on dark noise."""
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(3, 60, 80, generator=generator) * 0.2
    image[:, 15:45, 20:60] += 0.7
    return image


def session(**options: object) -> InteractiveSession:
    return InteractiveSession(model(), picture(), **{"refinement": "none", **options})  # type: ignore[arg-type]


def test_the_image_is_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    encode = model().encoder.forward
    monkeypatch.setattr(
        model().encoder, "forward", lambda *a, **k: calls.append(1) or encode(*a, **k)
    )
    clicked = session()
    for x in (30, 40, 50):
        clicked.click(x, 30)
    clicked.click(3, 3, positive=False)
    assert len(calls) == 1


def test_clicks_find_the_square_and_lie_at_the_images_size() -> None:
    clicked = session()
    result = clicked.click(40, 30)
    assert result.labels.shape == (60, 80)
    assert result.labels[30, 40] == 1
    result = clicked.click(3, 3, positive=False)
    truth = np.zeros((60, 80), bool)
    truth[15:45, 20:60] = True
    found = result.mask()
    assert (found & truth).sum() / (found | truth).sum() > 0.6


def test_undo_brings_the_mask_back_to_the_last_bit_and_redo_goes_on() -> None:
    clicked = session()
    first = clicked.click(40, 30)
    second = clicked.click(3, 3, positive=False)
    back = clicked.undo()
    assert back is not None and np.array_equal(back.scores, first.scores)
    forward = clicked.redo()
    assert forward is not None and np.array_equal(forward.scores, second.scores)
    clicked.undo()
    clicked.click(70, 50, positive=False)
    with pytest.raises(ValueError, match="redo: expected a change that was taken back"):
        clicked.redo()
    clicked.undo()
    clicked.undo()
    assert clicked.result is None
    with pytest.raises(ValueError, match="undo: expected a change to take back, got none"):
        clicked.undo()


def test_a_bad_point_changes_nothing() -> None:
    clicked = session()
    before = clicked.click(40, 30)
    clicked.annotate(lambda said: said.without_last())
    before = clicked.click(79.9, 59.9)  # the last pixel
    for x, y in ((80, 3), (3, 60), (-1, 0), (float("nan"), 2)):
        with pytest.raises(ValueError, match="points"):
            clicked.click(x, y)
    assert clicked.result is before
    assert len(clicked.annotations[0]) == 1


def test_without_anything_positive_nothing_is_found() -> None:
    clicked = session()
    result = clicked.click(3, 3, positive=False)
    assert not result.labels.any()
    assert clicked.result is None
    with pytest.raises(ValueError, match="object: expected a positive mark or a support"):
        clicked.task()
    assert clicked.click(40, 30).labels.any()


def test_objects_compete() -> None:
    clicked = session()
    clicked.click(40, 30)
    result = clicked.click(5, 5, object=2)
    assert result.names == ("object", "object 2")
    assert result.labels[30, 40] == 1 and result.labels[5, 5] == 2
    with pytest.raises(ValueError, match="object: expected 1 to 3, got 5"):
        clicked.click(1, 1, object=5)


def test_an_object_with_background_alone_leaves_the_others_as_they_are() -> None:
    clicked = session()
    first = clicked.click(40, 30)
    result = clicked.click(3, 3, positive=False, object=2)
    assert result.names == ("object", "object 2")
    assert np.array_equal(result.labels, first.labels)
    assert np.array_equal(result.scores[0], first.scores[0])
    assert not result.scores[1].any()
    other = clicked.click(5, 5, object=3)
    assert set(np.unique(other.labels)) == {0, 1, 3}


def test_of_contradicting_clicks_the_later_counts() -> None:
    clicked = session(width=1)
    clicked.click(40, 30)
    assert not clicked.click(40, 30, positive=False).labels.any(), "nothing positive is left"
    with pytest.raises(ValueError, match="object: expected a positive mark or a support"):
        clicked.task()
    assert clicked.click(40, 30).labels.any()


@pytest.mark.parametrize(("method", "layers"), [("ssp", ("layer2", "layer3")), ("canet", None)])
def test_a_click_anywhere_is_seen(method: str, layers: tuple[str, ...] | None) -> None:
    """Methods that read a shrunken mask must not lose a disk between the places they read."""
    torch.manual_seed(0)
    options = {} if layers is None else {"encoder": "resnet18", "layers": layers}
    network = create_model(method, size=129, **options)
    clicked = InteractiveSession(network, torch.rand(3, 150, 258), refinement="none")
    for x in range(100, 117, 3):
        for y in range(60, 77, 4):
            clicked.annotate(lambda _, at=(x, y): Annotation().point(*at))
            prototype = next(iter(clicked.task().tensors.values()))
            assert prototype.abs().sum() > 0, (x, y)


def test_sessions_leave_the_model_as_it_was() -> None:
    """AMP moves its background with every support that it sees, as published; fit does not."""
    torch.manual_seed(0)
    network = create_model("amp", size=65)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    clicked = InteractiveSession(network, torch.rand(3, 65, 65), refinement="none")
    first = clicked.click(30, 30)
    clicked.click(60, 60, positive=False)
    back = clicked.undo()
    assert back is not None and np.array_equal(back.scores, first.scores)
    assert all(torch.equal(before[k], t) for k, t in network.state_dict().items())


def test_a_class_is_carried_to_the_next_image() -> None:
    first = session()
    first.click(40, 30)
    first.click(3, 3, positive=False)
    second = InteractiveSession(model(), picture(1), refinement="none")
    found = second.add_task(first.task(), name="square")
    assert found is not None and found.names == ("square",)
    assert found.labels[30, 40] == 1
    own = second.click(40, 30)
    assert second.task().shots == 2
    assert own.labels.shape == (60, 80)
    shot = (picture(2), np.pad(np.ones((30, 40), np.uint8), ((15, 15), (20, 20))))
    assert second.add_support([shot]) is not None
    assert second.task().shots == 3


def test_the_task_segments_other_images() -> None:
    clicked = session()
    clicked.click(40, 30)
    result = model().predict(picture(3), clicked.task())
    assert result.labels.shape == (60, 80)


@pytest.mark.parametrize("said", ["stroke", "box", "mask"])
def test_other_marks(said: str) -> None:
    clicked = session()
    if said == "stroke":
        result = clicked.stroke([(30, 30), (50, 32)])
    elif said == "box":
        result = clicked.box(20, 15, 60, 45)
    else:
        mask = torch.full((60, 80), 255, dtype=torch.uint8)
        mask[20:40, 30:50], mask[:5] = 1, 0
        result = clicked.mask(mask)
    assert result.labels[30, 40] == 1


def test_reset_can_be_undone() -> None:
    clicked = session()
    before = clicked.click(40, 30)
    clicked.reset()
    assert clicked.result is None
    after = clicked.undo()
    assert after is not None and np.array_equal(after.scores, before.scores)


@pytest.mark.parametrize("name", ["guided", "grabcut"])
def test_refinements_keep_what_was_said(name: str) -> None:
    if name == "grabcut":
        pytest.importorskip("cv2", reason="not installed: pip install fastfss[interactive]")
    clicked = session(refinement=name)
    clicked.click(40, 30)
    result = clicked.click(22, 17, positive=False)
    assert result.labels[30, 40] == 1 and result.labels[17, 22] == 0
    again = session(refinement=name)
    again.click(40, 30)
    assert np.array_equal(again.click(22, 17, positive=False).scores, result.scores)


def test_an_unknown_refinement_is_named() -> None:
    with pytest.raises(ValueError, match="refinement: expected one of none, guided, grabcut"):
        session(refinement="sharp")
