"""What is written comes back, and what is undone is gone: masks, annotations, tasks, results."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import hypothesis.extra.numpy as arrays
import hypothesis.strategies as st
import numpy as np
import numpy.typing as npt
import torch
from hypothesis import given
from PIL import Image

from fastfss import Annotation, Result, Task
from fastfss.data import read_label_map, read_mask
from fastfss.video.rle import (
    coco_rle,
    decode_labels,
    decode_mask,
    encode_labels,
    encode_mask,
    from_coco_rle,
)
from tests.robustness.test_properties import few

SIZES = st.tuples(st.integers(1, 25), st.integers(1, 25))
LABELS = SIZES.flatmap(lambda size: arrays.arrays(np.uint8, size))
BINARY = SIZES.flatmap(lambda size: arrays.arrays(np.bool_, size))


@few
@given(LABELS, st.sampled_from(["L", "P", "I;16"]))
def test_label_maps_come_back_from_pngs(labels: npt.NDArray[np.uint8], mode: str) -> None:
    image = Image.fromarray(labels.astype(np.uint16) if mode == "I;16" else labels)
    if mode == "P":
        image.putpalette([(7 * n) % 256 for n in range(768)])
    with TemporaryDirectory() as folder:
        image.save(Path(folder) / "a.png")
        found = read_label_map(Path(folder) / "a.png", size=labels.shape)
        assert np.array_equal(found.numpy(), labels)
        for value in {*labels.ravel().tolist()} - {0}:
            mask = read_mask(Path(folder) / "a.png", value=value).numpy()
            assert np.array_equal(mask == 1, labels == value)
            assert np.array_equal(mask == 255, (labels == 255) & (value != 255))


@few
@given(LABELS)
def test_run_lengths_of_label_maps_come_back(labels: npt.NDArray[np.uint8]) -> None:
    assert np.array_equal(decode_labels(encode_labels(labels), labels.shape), labels)


@few
@given(BINARY)
def test_run_lengths_of_masks_come_back(mask: npt.NDArray[np.bool_]) -> None:
    assert np.array_equal(decode_mask(encode_mask(mask), mask.shape), mask)
    found = coco_rle(mask)
    assert np.array_equal(from_coco_rle(found), mask)
    result = Result.from_probabilities(
        torch.from_numpy(mask)[None].float(), torch.from_numpy(mask).long(), names=["cow"]
    )
    assert result.rle() == found  # by pycocotools


Place = tuple[float, float]
POINTS = st.tuples(st.floats(0, 29.9), st.floats(0, 19.9))
MARKS = st.one_of(
    st.tuples(st.just("point"), POINTS, st.booleans()),
    st.tuples(st.just("stroke"), st.lists(POINTS, min_size=1, max_size=4), st.booleans()),
    st.tuples(
        st.just("box"),
        st.tuples(st.integers(0, 14), st.integers(0, 9), st.integers(15, 30), st.integers(10, 20)),
        st.booleans(),
    ),
    st.tuples(st.just("area"), arrays.arrays(np.bool_, (20, 30)), st.booleans()),
)


def said(annotation: Annotation, mark: tuple[str, object, bool]) -> Annotation:
    kind, where, positive = mark
    if kind == "area":
        return annotation.area(where)  # type: ignore[arg-type]
    if kind == "stroke":
        return annotation.stroke(where, positive=positive)  # type: ignore[arg-type]
    return getattr(annotation, kind)(*where, positive=positive)  # type: ignore[misc,no-any-return]


@few
@given(st.lists(MARKS, min_size=1, max_size=6))
def test_annotations_are_undone_mark_by_mark(marks: list[tuple[str, object, bool]]) -> None:
    steps = [Annotation()]
    for mark in marks:
        steps.append(said(steps[-1], mark))
    masks = [one.rasterize((20, 30)) for one in steps]
    again = Annotation.from_json(steps[-1].to_json())
    for wanted in reversed(masks):
        found = again.rasterize((20, 30))
        assert torch.equal(found, wanted)
        assert set(found.unique().tolist()) <= {0, 1, 255}
        again = again.without_last() if len(again) else again
    assert len(again) == 0


NAMES = st.text(min_size=1, max_size=8).filter(lambda text: text.encode("utf-8", "ignore") != b"")
DTYPES = st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.uint8, torch.bool])


@few
@given(
    st.integers(1, 4),
    st.dictionaries(NAMES, st.tuples(st.lists(st.integers(0, 4), max_size=3), DTYPES), min_size=1,
                    max_size=3),
    NAMES,
    st.dictionaries(NAMES, NAMES, max_size=3),
)  # fmt: skip
def test_tasks_come_back_bit_by_bit(
    shots: int,
    tensors: dict[str, tuple[list[int], torch.dtype]],
    name: str,
    settings: dict[str, str],
) -> None:
    made = {
        key: torch.randint(0, 2, (1, shots, *shape)).to(dtype)
        for key, (shape, dtype) in tensors.items()
    }
    task = Task("ssp", made, name, settings)
    with TemporaryDirectory() as folder:
        task.save(Path(folder) / "task.safetensors")
        again = Task.load(Path(folder) / "task.safetensors")
    assert (again.method, again.name, dict(again.settings)) == ("ssp", name, settings)
    assert again.tensors.keys() == made.keys() and again.shots == shots
    for key, tensor in made.items():
        assert again.tensors[key].dtype == tensor.dtype
        assert torch.equal(again.tensors[key], tensor)
    again.check_settings("ssp", task.settings, argument="task")
    assert task.merge(again).select(range(shots)).shots == shots


@few
@given(
    *(st.integers(1, 4), SIZES, st.integers(0, 2**31)),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
)
def test_a_result_holds_together(
    ways: int, size: tuple[int, int], seed: int, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(seed)
    probabilities = torch.rand(ways + 1, *size, generator=generator).softmax(0)[1:].to(dtype)
    labels = torch.randint(0, ways + 1, size, generator=generator)
    result = Result.from_probabilities(
        probabilities, labels, names=[f"way {n}" for n in range(1, ways + 1)]
    )
    assert result.labels.shape == size and result.labels.max() <= ways
    assert result.scores.shape == (ways, *size)
    assert (result.scores >= 0).all() and (result.scores <= 1).all()
    masks = np.stack([result.mask(way) for way in range(1, ways + 1)])
    assert (masks.sum(axis=0) <= 1).all()
    assert np.array_equal(masks.any(axis=0), result.labels > 0)
    assert sum(result.area(way) for way in range(1, ways + 1)) == (result.labels > 0).sum()
    with TemporaryDirectory() as folder:
        result.save_mask(Path(folder) / "a.png")
        assert np.array_equal(read_label_map(Path(folder) / "a.png").numpy(), result.labels)
