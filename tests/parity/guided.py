"""Runs the cases of the guided networks."""

from __future__ import annotations

import json
from functools import reduce

import numpy as np
import torch
from torch import Tensor

from fastfss.encoders.fcn_vgg import FCNVGG, NORMALIZATION
from fastfss.methods import (
    GUIDED_NETWORKS,
    FCN32s,
    GuidedEarly,
    GuidedLate,
    GuidedSegmenter,
    InteractiveEarly,
    InteractiveLate,
    create_model,
    published_state,
)
from fastfss.methods.guided_parts import annotated_image, normalised_mass, one_hot
from fastfss.task import Task
from fastfss.weights import load_into
from tests.parity.golden import Case, Report

# Rounding alone flips a few ReLUs and poolings, which moves conv1_1's gradient by up to 5e-3 and
# the others by 2e-5 (the specification's bound where rounding agrees: 1e-3). So the gradients are
# those of the encoder that computes all of its padding, as published; that the other way has the
# same is shown in float64 by tests/encoders/test_fcn_vgg.py.
GRADIENT_TOLERANCE = 1e-3
UNANNOTATED = 255


def run_guided(case: Case, report: Report) -> None:
    model = _model(case)
    train = str(case["kind"]) == "train"
    if train:
        assert isinstance(model.encoder, FCNVGG)
        model.encoder.blank_border = False
    # Dropout is off in the training cases too.
    with torch.set_grad_enabled(train):
        query = _pixels(case["query"])
        logits, scores = RUNS[type(model)](case, report, model, query)
        stride = int(case["logits_stride"])
        report.compare("logits", logits[0, :, ::stride, ::stride], case["logits"])
        report.compare("scores_low", scores[0], case["scores_low"])
        target = case.tensor("target" if train else "query_mask")[None]
        loss = model.loss(logits, target)
        report.compare("loss", loss, case["loss"])
    if train:
        loss.backward()
        _compare_gradients(case, report, model)


def _model(case: Case) -> GuidedSegmenter:
    name = str(case["model"])
    options = {}
    if GUIDED_NETWORKS[name].options.get("shared", True) and name.startswith("cofeat-late"):
        options["legacy_short_circuit"] = True
    # Without memory, so that 185 million weights are not drawn twice; load_into misses none.
    with torch.device("meta"):
        model = create_model(name, **options)
    assert isinstance(model, GuidedSegmenter)
    model.to_empty(device="cpu")
    weights = case.weights()
    rename = model.published_keys.to_ours
    load_into(model, weights, rename=rename, source=case.path.name)
    values, *_ = json.loads(str(case["shapes"])).get("z", (0,))
    assert set(published_state(model, values=values)) == {str(key) for key in case["keys"]}
    return model


def _pixels(image: np.ndarray) -> Tensor:
    """uint8 RGB (3, H, W) to (1, 3, H, W), through the encoder's own normalisation: to the bit."""
    ours = torch.from_numpy(image.astype(np.float32) / np.float32(255))[None]
    mean = np.array([0.48109378, 0.45752457, 0.40787054]) * 255
    wanted = torch.from_numpy(image[::-1].astype(np.float32) - mean[::-1, None, None].astype("f4"))
    found = NORMALIZATION.apply(ours)
    assert torch.equal(found[0], wanted)
    return found


def _labels(case: Case, mask: np.ndarray, index: int, value: int, values: int) -> Tensor:
    """(1, H, W): the dense or sparse annotation of an image whose object has this value."""
    if str(case["mode"]) == "dense":
        return torch.from_numpy(mask.astype(np.int64) * value)[None]
    labels = np.full(mask.size, UNANNOTATED, np.int64)
    points = case["points"].reshape(-1, values, case["points"].shape[-1])[index]
    for number, places in enumerate(points):
        labels[places[places >= 0]] = number
    return torch.from_numpy(labels.reshape(1, *mask.shape))


def _supports(case: Case) -> list[list[tuple[Tensor, Tensor]]]:
    """Of every way the shots: image and label map."""
    ways, shots = case["support"].shape[:2]
    found: list[list[tuple[Tensor, Tensor]]] = []
    for way in range(ways):
        found.append([])
        for shot in range(shots):
            mask, index = case["support_mask"][way, shot], way * shots + shot
            labels = _labels(case, mask, index, way + 1, ways + 1)
            found[-1].append((_pixels(case["support"][way, shot]), labels))
    return found


def _of_way(labels: Tensor, value: int) -> Tensor:
    """A label map as the mask of one object: other objects are unannotated."""
    other = (labels != 0) & (labels != value) & (labels != UNANNOTATED)
    return torch.where(labels == value, 1, labels).masked_fill(other, UNANNOTATED)


def _compare_features(case: Case, report: Report, key: str, features: Tensor) -> None:
    report.compare_if_there(case, key, features[0, :32])
    if f"{key}_norm" in case:
        report.compare(f"{key}_norm", features.norm(), case[f"{key}_norm"])


def _guided_late(
    case: Case, report: Report, model: GuidedLate, query: Tensor
) -> tuple[Tensor, Tensor]:
    if str(case["model"]).startswith("interactive"):
        labels = _labels(case, case["query_mask"], 0, 1, 2)
        tasks, ways = [model.encode_support([query], [labels])], [[(query, labels)]]
    else:
        ways = _supports(case)
        tasks = [_merged(case, report, model, way, n) for n, way in enumerate(ways, start=1)]
        _compare_features(case, report, "support_feat", model.features(ways[0][0][0]))
    features = model.features(query)
    _compare_features(case, report, "query_feat", features)
    image, labels = ways[0][0]
    values = case["anno_low"].shape[0]
    annotation = one_hot(labels, values, torch.float32)
    size, cells = tuple(image.shape[2:]), tuple(model.features(image).shape[2:])
    low = normalised_mass(model.grid.mass(annotation, size, cells))
    report.compare("anno_low", low[0], case["anno_low"])
    of_query = model.head.of_query(features)
    if model.shared:
        guidance, _ = model.value_guidance(tasks, query.dtype)
        report.compare_if_there(case, "z", guidance[0])
        scores = model.value_scores(of_query, guidance)
        _compare_in_one_call(report, model, query, ways, tasks)
    else:
        (scores,) = model.pair_scores(of_query, tasks)
    return model.segment(query, tasks).logits, scores


def _merged(
    case: Case, report: Report, model: GuidedLate, way: list[tuple[Tensor, Tensor]], value: int
) -> Task:
    """The shots one after the other, as cumulative guidance."""
    tasks = [model.encode_support([image], [_of_way(labels, value)]) for image, labels in way]
    steps = [reduce(Task.merge, tasks[: count + 1]) for count in range(len(tasks))]
    if "z_steps" in case:
        for step, (task, wanted) in enumerate(zip(steps, case["z_steps"], strict=True)):
            guidance, _ = model.value_guidance([task], torch.float32)
            report.compare(f"z_steps_{step}", guidance[0], wanted)
        counts = steps[-1].tensors["present"].sum(1)[0, :, None]
        report.compare("num_z", counts, case["num_z"])
    return steps[-1]


def _compare_in_one_call(
    report: Report,
    model: GuidedLate,
    query: Tensor,
    ways: list[list[tuple[Tensor, Tensor]]],
    tasks: list[Task],
) -> None:
    """All shots of a way at once give what they give one by one."""
    together = [
        model.encode_support([image for image, _ in way], [_of_way(labels, n) for _, labels in way])
        for n, way in enumerate(ways, start=1)
    ]
    wanted, _ = model.value_guidance(tasks, query.dtype)
    found, _ = model.value_guidance(together, query.dtype)
    report.compare("together", found, wanted.detach())


def _guided_early(
    case: Case, report: Report, model: GuidedEarly, query: Tensor
) -> tuple[Tensor, Tensor]:
    (way,) = _supports(case)
    task = model.encode_support([image for image, _ in way], [labels for _, labels in way])
    features = model.features(query)
    _compare_features(case, report, "query_feat", features)
    report.compare_if_there(case, "z", model.guidance(task, features))
    prediction = model.segment(query, task)
    of_guidance = model.head.of_guidance(model.guidance(task, features)[:, None])
    hidden = model.head.of_query(features)[:, None] + of_guidance[..., None, None]
    return prediction.logits, model.head.scores(hidden)[:, 0]


def _interactive_late(
    case: Case, report: Report, model: InteractiveLate, query: Tensor
) -> tuple[Tensor, Tensor]:
    task = model.encode_support([query], [_labels(case, case["query_mask"], 0, 1, 2)])
    features = model.features(query)
    _compare_features(case, report, "query_feat", features)
    weights = model.weights([task], features)
    report.compare("anno_low", weights[0], case["anno_low"])
    hidden = model.head.of_query(features)[:, None]
    hidden = hidden + model.head.of_guidance_map(features)[:, None] * weights[:, :, None]
    return model.segment(query, task).logits, model.head.scores(hidden)[:, :, 0]


def _interactive_early(
    case: Case, report: Report, model: InteractiveEarly, query: Tensor
) -> tuple[Tensor, Tensor]:
    task = model.encode_support([query], [_labels(case, case["query_mask"], 0, 1, 2)])
    features = model.features(annotated_image(query, model.annotation(task, query)))
    _compare_features(case, report, "query_feat", features)
    return model.segment(query, task).logits, model.head(features)


def _fcn32s(case: Case, report: Report, model: FCN32s, query: Tensor) -> tuple[Tensor, Tensor]:
    features = model.features(query)
    _compare_features(case, report, "query_feat", features)
    return model(query), model.head(features)


RUNS = {
    FCN32s: _fcn32s,
    GuidedEarly: _guided_early,
    GuidedLate: _guided_late,
    InteractiveEarly: _interactive_early,
    InteractiveLate: _interactive_late,
}


def _compare_gradients(case: Case, report: Report, model: GuidedSegmenter) -> None:
    gradients = {
        model.published_keys.to_published(name): parameter.grad
        for name, parameter in model.named_parameters()
    }
    keys = [str(key) for key in case["grad_keys"]]
    assert set(gradients) == set(keys), "other parameters are trained than published"
    for key, wanted in zip(keys, case["grad_norms"], strict=True):
        found = gradients[key]
        assert found is not None
        if float(wanted) < 1e-6:
            # The bias of a shared score shifts every channel alike: rounding of zero.
            assert key == "head.score.bias" and float(found.abs().max()) < 1e-6
            continue
        # float32 norms, as the stored ones are.
        report.compare(f"grad_norm_{key}", found.norm(), wanted, tolerance=GRADIENT_TOLERANCE)
        if f"grad.{key}" in case:
            stored = case[f"grad.{key}"]
            report.compare(f"grad_{key}", found, stored, tolerance=GRADIENT_TOLERANCE)
