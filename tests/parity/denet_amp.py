"""Runs the cases of DENet and AMP, both as lizhaoliu-Lec/DENet implements them."""

from __future__ import annotations

import json
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastfss.encoders import create_encoder
from fastfss.methods import AMP, DENet
from fastfss.methods.prototypes import upsample
from fastfss.weights import load_into
from tests.parity.golden import Case, Report, normalised

DENET_ENCODERS = {
    "ResNet50": "dilated_resnet50",
    "ResNet101": "dilated_resnet101",
    "DenseNet121": "dilated_densenet121",
}
AMP_ENCODERS = {"VGG16Base": "amp_vgg16", "VGG16BNBase": "amp_vgg16_bn"}

# The specification's bound for gradient norms.
GRADIENT_TOLERANCE = 1e-3
# Near this share of the largest logit two classes may change places (float32 of both sides).
TIE = 1e-4


def run_denet(case: Case, report: Report) -> None:
    kind = str(case.value("kind"))
    kinds: dict[str, Callable[[Case, Report], None]] = {
        "forward": _denet_forward,
        "support_free": _denet_support_free,
        "train": _denet_train,
    }
    kinds[kind](case, report)


def _denet(case: Case, *, support_free: bool = False) -> DENet:
    keys = case["keys"]
    default = "ResNet50" if "backbone.layer3.5.conv1.weight" in keys else "DenseNet121"
    encoder = create_encoder(DENET_ENCODERS[str(case.value("backbone", default))])
    classes = json.loads(str(case["shapes"]))["estimator.weight"][0]
    model = DENet(encoder, classes=classes, support_free=support_free, dropout=0.0)
    weights = case.weights()
    load_into(model, weights, rename=model.published_keys.to_ours, source=case.path.name)
    assert {model.published_keys.to_published(key) for key in model.state_dict()} == set(weights)
    return model


def _denet_forward(case: Case, report: Report) -> None:
    model = _denet(case).eval()
    images, masks, query, labels = _denet_episode(case)
    batch, ways, shots = images.shape[:3]
    with torch.no_grad():
        tasks = [model.encode_support(*way) for way in _ways(images, masks, labels)]
        _denet_maps(case, report, model, images, query)
        features = model.embed(images.flatten(0, 2))
        objects = nn.functional.interpolate(
            masks.flatten(0, 2).unsqueeze(1).float(), features.shape[2:], mode="nearest"
        )
        estimator = model.estimator
        mean = (features * objects).sum((2, 3)) / (objects.sum((2, 3)) + 1e-3)
        report.compare_if_there(case, "mid_gate", estimator.gate(mean, objects))
        by_way = torch.stack([task.tensors["prototype"] for task in tasks], dim=1)
        assert by_way.shape[:3] == (batch, ways, shots)
        report.compare_if_there(case, "mid_prototype", by_way.flatten(0, 2))
        output = model.classify(query, tasks)
        report.compare("out_full", output.full, case["out_full"])
        report.compare("out_binary", output.binary(), case["out_binary"])
        size = (query.shape[2], query.shape[3])
        _compare_maps(case, "out_pred_full", upsample(output.full, size))
        _compare_maps(case, "out_pred_binary", upsample(output.binary(), size))
        prediction = model.segment(query, tasks)
        if ways == 1:
            report.compare("segment", prediction.logits, upsample(output.binary(), size))
        # The copy for inference takes other paths: folded norms, channels-last.
        fast = model.for_inference()
        again = [fast.encode_support(*way) for way in _ways(images, masks, labels)]
        report.compare("for_inference", fast.classify(query, again).full, output.full)


def _denet_support_free(case: Case, report: Report) -> None:
    model = _denet(case, support_free=True).eval()
    images, masks = normalised(case["support"])[:, 0], case.tensor("support_mask")[:, 0]
    query, labels = normalised(case["query"]), case.tensor("labels")
    outputs = []
    with torch.no_grad():
        for call in range(len(query)):
            one = slice(call, call + 1)
            task = model.encode_support(images[one], masks[one], labels[one])
            outputs.append(model.classify(query[one], task).full)
    report.compare("out_full_first", outputs[0], case["out_full_first"])
    report.compare("out_full_second", outputs[1], case["out_full_second"])
    report.compare("out_weight_after", model.estimator.weight, case["out_weight_after"])


def _denet_train(case: Case, report: Report) -> None:
    model = _denet(case).train()
    images, masks, query, labels = _denet_episode(case)
    output = model(images[:, 0], masks[:, 0], query, labels[:, 0])
    report.compare("out_full", output.full, case["out_full"])
    report.compare("out_binary", output.binary(), case["out_binary"])
    state = model.state_dict()
    for key in case.arrays:
        if key.endswith("_after"):
            name = key.removesuffix("_after").replace("_running", ".running")
            head = name.startswith("head_")
            name = name.replace("head_", "deeplab_head.") if head else f"encoder.{name}"
            report.compare(key, state[name], case[key])
    targets = case.tensor("query_full"), case.tensor("query_binary")
    losses = model.loss(output, *targets)
    report.compare("loss_k", losses["knowledge"], case["loss_k"])
    report.compare("loss_p", losses["pattern"], case["loss_p"])
    losses["total"].backward()
    _compare_gradients(case, report, model)
    model.class_weight = 2.0
    report.compare("loss_k_lambda2", model.loss(output, *targets)["total"], case["loss_k_lambda2"])
    model.stable_focal = True
    report.compare("loss_p_stable", model.loss(output, *targets)["pattern"], case["loss_p"])


def _denet_episode(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (B, W, K, 3, H, W), their masks, queries (B, 3, H, W), class ids (B, W)."""
    images, masks = normalised(case["support"]), case.tensor("support_mask")
    query, labels = normalised(case["query"]), case.tensor("labels")
    if images.ndim == 5:
        images, masks, query = images[None], masks[None], query[None]
    return images, masks, query, labels.view(images.shape[:2])


def _ways(*tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Way by way what tensors (B, W, ...) hold of it."""
    return list(zip(*(tensor.unbind(1) for tensor in tensors), strict=True))


def _denet_maps(case: Case, report: Report, model: DENet, images: Tensor, query: Tensor) -> None:
    """The maps on the way, of all supports and of the queries."""
    for side, batch in (("support", images.flatten(0, 2)), ("query", query)):
        maps = model.encoder(batch, ["layer1", "layer3"])
        for name, one in maps.items():
            report.compare_if_there(case, f"mid_{name}_{side}", _probe(one))
        embedded = model.embedding(maps["layer3"])
        report.compare_if_there(case, f"mid_embedding_{side}", _probe(embedded))
        pyramid = model.deeplab_head.aspp(embedded)
        report.compare_if_there(case, f"mid_aspp_{side}", _probe(pyramid))
        report.compare_if_there(case, f"mid_head_{side}", _probe(model.embed(batch)))


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


def _compare_gradients(case: Case, report: Report, model: AMP | DENet) -> None:
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
