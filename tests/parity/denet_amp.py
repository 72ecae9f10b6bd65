"""Runs the cases of DENet and AMP, both as lizhaoliu-Lec/DENet implements them."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from fastfss.encoders import create_encoder
from fastfss.methods import AMP
from fastfss.methods.prototypes import upsample
from tests.parity.golden import Case, Report, normalised

AMP_ENCODERS = {"VGG16Base": "amp_vgg16", "VGG16BNBase": "amp_vgg16_bn"}
# The specification's bound for gradient norms.
GRADIENT_TOLERANCE = 1e-3
# Near this share of the largest logit two classes may change places (float32 of both sides).
TIE = 1e-4


def run_amp(case: Case, report: Report) -> None:
    {"forward": _amp_forward, "train": _amp_train}[str(case.value("kind"))](case, report)


def _amp(case: Case, *, base: bool) -> AMP:
    with_norms = any(str(key).endswith("running_mean") for key in case["keys"])
    backbone = str(case.value("backbone", "VGG16BNBase" if with_norms else "VGG16Base"))
    shape = json.loads(str(case["shapes"]))["level1_classifier.weight"]
    alpha = float(case.value("alpha", 0.25821))  # type: ignore[arg-type]
    encoder = create_encoder(AMP_ENCODERS[backbone])
    model = AMP(encoder, classes=int(shape[0]), base=base, alpha=alpha)
    weights = case.weights()
    model.load_checkpoint(weights, case.path.name)
    names = {model.published_keys.to_published(key) for key in model.state_dict()}
    aliases = set(weights) - names
    assert names <= set(weights)
    assert {model.published_keys.to_ours(key) for key in aliases} <= set(model.state_dict())
    assert all(key.startswith("level") for key in aliases)
    return model


def _amp_forward(case: Case, report: Report) -> None:
    model = _amp(case, base=case["out_first"].shape[1] != 2).eval()
    images, masks = normalised(case["support"])[:, 0], case.tensor("support_mask")[:, 0]
    query, labels = normalised(case["query"]), case.tensor("labels")
    group = int(case["group"])
    calls = list(zip(*(x.split(group) for x in (images, masks, query)), strict=True))
    for number, (shots, shot_masks, queries) in enumerate(calls):
        with torch.no_grad():
            task = model.encode_support(shots, shot_masks, labels)
            output = model.classify(queries, task)
            moments = [n for n, at in (("first", 0), ("last", len(calls) - 1)) if at == number]
            for moment in moments:
                report.compare_if_there(case, f"out_{moment}", output.full)
                levels, _ = model.level_logits(model.levels(queries), [task])
                for level, logits in enumerate(levels, start=1):
                    report.compare_if_there(case, f"mid_logits{level}_{moment}", logits)
                    row = model.classifiers[level - 1].weight[0].flatten()
                    report.compare_if_there(case, f"mid_background_row{level}_{moment}", row)
            if number == 0:
                for level, features in enumerate(model.levels(shots.flatten(0, 1)), start=1):
                    report.compare_if_there(case, f"mid_level{level}_support", _probe(features))
    _compare_maps(case, "out_pred_last", upsample(output.full, tuple(queries.shape[2:])))
    assert len(calls) == int(case.value("runs", len(calls)))  # type: ignore[call-overload]


def _amp_train(case: Case, report: Report) -> None:
    model = _amp(case, base=True).train()
    logits = model(normalised(case["query"]))
    report.compare("out_logits", logits, case["out_logits"])
    loss = model.loss(logits, case.tensor("query_full"))
    report.compare("loss", loss, case["loss"])
    loss.backward()
    _compare_gradients(case, report, model)


def _compare_gradients(case: Case, report: Report, model: AMP) -> None:
    ours = {
        model.published_keys.to_published(name): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    keys = [str(key) for key in case["grad_keys"]]
    assert set(ours) == set(keys), "other parameters are trained than published"
    for key, wanted in zip(keys, case["grad_norms"], strict=True):
        norm = ours[key].double().norm()
        report.compare(f"grad_{key}", norm, wanted, tolerance=GRADIENT_TOLERANCE)


def _compare_maps(case: Case, key: str, scores: Tensor) -> None:
    """The argmax of scores (B, C, H, W) is the case's map where it is not a near tie."""
    top = scores.topk(2, dim=1).values
    sure = top[:, 0] - top[:, 1] > TIE * scores.abs().max()
    assert torch.equal(scores.argmax(1)[sure], case.tensor(key).long()[sure]), key
    assert sure.float().mean() > 0.9


def _probe(maps: Tensor) -> Tensor:
    return maps[:, ::16, ::3, ::3]
