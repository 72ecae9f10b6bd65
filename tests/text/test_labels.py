"""Labels instead of masks, with a small tower of random weights: the pipeline, not the masks."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import fastfss
from fastfss import Label, LabelNotFoundError
from fastfss.methods import FewShotSegmenter
from fastfss.text import TextLabels, activation_maps
from fastfss.text.labels import View, as_label
from tests.methods.options import OPTIONS
from tests.text.towers import picture, tiny_tower

NAMES = ("cat", "dog", "bottle of wine", "tv", "sofa", "bird", "cow")

pytestmark = pytest.mark.filterwarnings("ignore:.*random weights.*:UserWarning")


def make(method: str) -> FewShotSegmenter:
    torch.manual_seed(0)
    size = 96 if method == "dcama" else 97
    return fastfss.create_model(method, size=size, **OPTIONS.get(method, {})).eval()


@pytest.fixture(scope="module")
def text() -> TextLabels:
    return TextLabels(tiny_tower(), others=NAMES)


def label_of(text: TextLabels, image: Tensor, *, found: bool) -> str:
    """A label that the random tower finds in an image in both views, or not in the whole of it."""
    views: tuple[View, View] = ("whole", "published")
    whole, centre = (text.maps(image, NAMES, view).amax(dim=(1, 2)) > 0 for view in views)
    return NAMES[int((whole & centre if found else ~whole).nonzero()[0])]


def test_maps_of_the_set_are_the_published_ones(text: TextLabels) -> None:
    image = picture(90, 140)
    wanted = activation_maps(text.tower, [image] * len(NAMES), NAMES, NAMES)
    torch.testing.assert_close(text(image, NAMES), wanted, rtol=1e-3, atol=1e-4)


def test_a_new_label_competes_with_the_others_and_not_with_its_neighbours(
    text: TextLabels,
) -> None:
    image = picture(90, 140)
    both = text.maps(image, ["lamp", "spoon"])
    for place, label in enumerate(["lamp", "spoon"]):
        wanted = activation_maps(text.tower, [image], [label], [*NAMES, label])
        torch.testing.assert_close(both[place : place + 1], wanted, rtol=1e-3, atol=1e-4)


def test_a_mask_is_what_exceeds_a_share_of_the_maximum(text: TextLabels) -> None:
    image = picture(90, 140)
    label = label_of(text, image, found=True)
    mask = text.mask(image, label)
    assert mask.shape == (90, 140) and mask.dtype == torch.uint8
    assert set(mask.unique().tolist()) == {0, 1}
    assert TextLabels(text.tower, others=NAMES, threshold=0.9).mask(image, label).sum() < mask.sum()
    unsure = TextLabels(text.tower, others=NAMES, unsure=0.2).mask(image, label)
    assert set(unsure.unique().tolist()) == {0, 1, 255}
    sure = unsure != 255
    assert torch.equal(unsure[sure], mask[sure])


@pytest.mark.parametrize("size", [(60, 200), (201, 60)])
def test_a_placed_map_lies_where_it_was_taken(text: TextLabels, size: tuple[int, int]) -> None:
    image = picture(*size)
    placed = TextLabels(text.tower, others=NAMES, view="placed")
    label = label_of(text, image, found=True)
    mask = placed.mask(image, label)
    across = mask.amax(dim=0 if size[1] > size[0] else 1)
    start = round((max(size) - 60) / 2)
    assert across[:start].eq(0).all() and across[start + 60 :].eq(0).all() and across.any()
    small = placed.maps(image, [label], view="placed")
    assert small.shape == (1, 50, 50) and small.max() > 0


def test_a_label_that_is_not_there_is_not_found(text: TextLabels) -> None:
    image = picture(90, 140)
    label = label_of(text, image, found=False)
    with pytest.raises(LabelNotFoundError, match=f"photo: '{label}' was not found"):
        text.mask(image, label, argument="photo")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"others": "imagenet"}, "others: expected one of coco, pascal"),
        ({"others": ()}, "others: expected at least one name"),
        ({"threshold": 1.0}, "threshold: expected a share"),
        ({"unsure": 0.5}, r"unsure: expected 0 <= unsure < 0\.5"),
        ({"view": "left"}, "view: expected one of published, placed, whole"),
        ({"template": "a photo"}, "template: expected a sentence"),
    ],
)
def test_bad_options_are_named(text: TextLabels, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TextLabels(text.tower, **{"others": NAMES, **options})  # type: ignore[arg-type]


def test_a_text_is_a_label_unless_it_looks_like_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("plain").write_bytes(b"")
    assert as_label("cat", known=True) == Label("cat")
    assert as_label("cat", known=False) is None
    for mask in ("cat.png", f"masks{os.sep}cat", "plain", Path("cat"), np.eye(3)):
        assert as_label(mask, known=True) is None
    assert as_label(Label("a/c unit"), known=False) == Label("a/c unit")
    with pytest.raises(ValueError, match="label: expected a name"):
        Label(" ")
    with pytest.raises(TypeError, match="label: expected a text, got int"):
        Label(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", fastfss.list_models())
def test_every_method_fits_a_label(method: str, text: TextLabels) -> None:
    image = picture(90, 140)
    label = label_of(text, image, found=True)
    model = make(method)
    model.text = text
    assert not any(key.startswith("text") for key in model.state_dict())
    task = model.fit([(Image.fromarray(image.permute(1, 2, 0).numpy()), label)])
    assert task.name == label
    fast = model.for_inference()
    if method == "imr-hsnet":
        with pytest.raises(ValueError, match=f"name: expected the label '{label}'"):
            fast.fit([(image, Label(label))], name="mine")
    else:
        assert fast.fit([(image, Label(label))], name="mine").name == "mine"
        wanted = model.fit([(image, text.mask(image, label))])
        for key, tensor in wanted.tensors.items():
            assert torch.equal(task.tensors[key], tensor), key


def test_imr_hsnet_takes_the_published_maps_of_both_images(text: TextLabels) -> None:
    image, query = picture(90, 140), picture(90, 140, 3)
    label = label_of(text, image, found=True)
    model = make("imr-hsnet")
    model.text = text
    task = model.fit([(image, label)])
    images, maps = model.read_shots([(image, label)])
    assert torch.equal(maps[0], text.maps(image, [label]))
    with torch.no_grad():
        wanted = model.encode_support(images, maps)
    assert torch.equal(task.tensors["map"], wanted.tensors["map"])
    found = model.predict(query, task)
    own = model.predict(query, task, query_map=text.maps(query, [label]))  # type: ignore[call-arg]
    np.testing.assert_array_equal(found.scores, own.scores)


def test_imr_hsnet_finds_nothing_of_a_label_that_is_not_in_the_query() -> None:
    image = picture(90, 140)
    model = make("imr-hsnet")
    task = model.fit([(image, np.eye(90, 140))])
    query_map = torch.rand(2, 50, 50, generator=torch.Generator().manual_seed(0))
    query_map[1] = 0
    one = model.predict(image, [task, task], query_map=query_map)  # type: ignore[call-arg]
    assert one.scores[1].max() == 0 and one.confidence[1] == 0 and 2 not in one.labels
    assert one.scores[0].max() > 0
    alone = model.predict(image, task, query_map=torch.zeros(50, 50))  # type: ignore[call-arg]
    assert alone.area() == 0 and alone.confidence == (0.0,)


def test_labels_and_masks_may_be_mixed(text: TextLabels) -> None:
    image = picture(90, 140)
    model = make("ssp")
    model.text = text
    label = label_of(text, image, found=True)
    assert model.fit([(image, np.eye(90, 140)), (image, label)]).shots == 2


def test_fit_says_what_is_wrong_with_a_label(text: TextLabels) -> None:
    image = picture(90, 140)
    model = make("ssp")
    with pytest.raises(ValueError, match=r"model\.text = fastfss\.load_clip\(FILE\)"):
        model.fit([(image, Label("cat"))])
    with pytest.raises(FileNotFoundError):
        model.fit([(image, "cat")])
    model.text = text
    with pytest.raises(LabelNotFoundError, match=r"shots\[0\] image: .* was not found"):
        model.fit([(image, label_of(text, image, found=False))])
    with pytest.raises(ValueError, match="at most 75 tokens"):
        model.fit([(image, "cat " * 80)])
    with pytest.raises(FileNotFoundError, match=r"dog\.png"):
        model.fit([(image, "dog.png")])
