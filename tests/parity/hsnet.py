"""Runs the cases of HSNet."""

from __future__ import annotations

import json
from itertools import pairwise

import torch
from torch import Tensor

from fastfss.encoders import create_encoder
from fastfss.methods import HSNet
from fastfss.methods.hypercorrelation import HypercorrelationLearner, resize_query
from fastfss.ops import center_pivot_conv4d, dense_correlation
from fastfss.weights import load_into
from tests.parity.golden import Case, Report, array_for

# Of the gradients of the training step: a ReLU within rounding of zero takes another branch.
GRADIENT_TOLERANCE = 1e-3


def run_hsnet(case: Case, report: Report) -> None:
    runners = {
        "forward": _forward,
        "train": _train,
        "conv4d": _conv4d,
        "corr": _corr,
    }
    runners[str(case.value("kind"))](case, report)


def _model(case: Case) -> HSNet:
    model = HSNet(create_encoder(f"blocks_{case.value('backbone')}"))
    weights = case.weights()
    model.load_checkpoint(weights, case.path.name)
    unused = ("backbone.fc.", "backbone.classifier.")
    names = {model.published_keys.to_published(key) for key in model.state_dict()}
    assert names == {key for key in weights if not key.startswith(unused)}
    return model.eval()


def _repeated(images: Tensor, case: Case) -> Tensor:
    factor = int(case.value("upscale", 1))  # type: ignore[call-overload]
    return images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def _episode(case: Case) -> tuple[list[Tensor], list[Tensor], Tensor, Tensor]:
    images, masks, query, query_mask = case.episode()
    return (
        [_repeated(image, case) for image in images],
        [_repeated(mask, case) for mask in masks],
        _repeated(query, case),
        _repeated(query_mask, case),
    )


@torch.no_grad()
def _forward(case: Case, report: Report) -> None:
    model = _model(case)
    images, masks, query, _ = _episode(case)
    task = model.encode_support(images, masks)
    if case.value("shots") == 1:
        _intermediates(case, report, model, query, {n: t[:, 0] for n, t in task.tensors.items()})
    size = (query.shape[2], query.shape[3])
    if "original_size" in case:
        height, width = (int(side) for side in case["original_size"])
        size = (height, width)
        # The case stores the learner's own output.
        shots = torch.stack(
            [
                model.match(model.maps(query), {n: t[:, k] for n, t in task.tensors.items()})[0]
                for k in range(task.shots)
            ]
        )
    else:
        shots = model.shot_logits(model.encode(query), [task], size)[0][0]
    report.compare_if_there(case, "shot_logits", shots[:, :, ::3, ::3])
    stride = int(case.value("logits_stride", 1))  # type: ignore[call-overload]
    report.compare_if_there(case, "logits", shots[0, :, ::stride, ::stride])
    if "shot_pred" in case:
        report.labels("shot_pred", shots.argmax(1), case["shot_pred"], shots[:, 1] - shots[:, 0])
        report.compare("votes", shots.argmax(1).sum(0), case["votes"])
    prediction = model.segment(query, task, size)
    report.labels("pred", prediction.labels[0], case["pred"], prediction.margins[0, 0])


def _intermediates(
    case: Case, report: Report, model: HSNet, query: Tensor, support: dict[str, Tensor]
) -> None:
    maps = model.maps(query)
    for index, name in enumerate(model.layers):
        report.compare_if_there(case, f"query_feat_{index}", maps[name][0, :8, ::2, ::2])
    levels = model.level_pairs(maps, support)
    correlations = [level.correlations() for level in levels]
    for number, one in zip((2, 3, 4), correlations, strict=True):
        first = one[0, :8]
        report.compare_if_there(case, f"corr_l{number}_support_mean", first.mean((3, 4)))
        report.compare_if_there(case, f"corr_l{number}_query_mean", first.mean((1, 2)))
        centre = one[0, 0, one.shape[2] // 2, one.shape[3] // 2]
        report.compare_if_there(case, f"corr_l{number}_centre", centre)
    means = torch.stack([one.double().mean() for one in reversed(correlations)])
    report.compare_if_there(case, "corr_mean", means)
    learner = model.hpn_learner
    found: dict[str, Tensor] = {}
    hooks = [
        block.register_forward_hook(
            lambda _module, _inputs, output, name=name: found.update({name: output.clone()})
        )
        for name, block in learner.named_children()
        if name.startswith("encoder_layer")
    ]
    mixed = learner.mix(*levels)
    for hook in hooks:
        hook.remove()
    step = 6 if "[0,:4,::6,::6]" in str(case["note"]) else 3
    for name, output in found.items():
        report.compare_if_there(case, name, output[0, :4, ::step, ::step])
    report.compare_if_there(case, "encoded", mixed[0, ::4, ::2, ::2])
    report.compare_if_there(case, "learner_logits", learner(*levels)[0, :, ::2, ::2])


def _train(case: Case, report: Report) -> None:
    model = _model(case).train()
    images, masks, query, query_mask = _episode(case)
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    keys = [str(key) for key in case["trained_keys"]]
    assert set(trained) == set(keys)
    optimizer = torch.optim.Adam(trained.values(), lr=float(case["lr"]))
    loss = model.loss(model(images, masks, query), query_mask)
    report.compare("loss", loss, case["loss"])
    loss.backward()
    norms = torch.stack([trained[key].grad.double().norm() for key in keys])
    report.compare("grad_norms", norms, case["grad_norms"], tolerance=GRADIENT_TOLERANCE)
    for key in keys:
        if f"grad:{key}" in case:
            report.compare(
                f"grad_{key}", trained[key].grad, case[f"grad:{key}"], tolerance=GRADIENT_TOLERANCE
            )
    optimizer.step()
    with torch.no_grad():
        after = model.loss(model(images, masks, query), query_mask)
    report.compare("loss_after_one_adam_step", after, case["loss_after_one_adam_step"])


def _conv4d(case: Case, report: Report) -> None:
    seed = int(case["seed"])
    names = [str(key) for key in case["keys"]]
    tags = [key.removesuffix("_kernel_stride") for key in case.arrays if "kernel_stride" in key]
    assert tags
    for tag in tags:
        shapes = json.loads(str(case[f"{tag}_shapes"]))
        weights = [
            torch.from_numpy(array_for(name, tuple(shape), seed)).requires_grad_()
            for name, shape in zip(names, shapes, strict=True)
        ]
        x = case.tensor(f"{tag}_x").requires_grad_()
        stride = int(case[f"{tag}_kernel_stride"][1])
        y = center_pivot_conv4d(x, *weights, stride=stride)
        report.compare(f"{tag}_y", y, case[f"{tag}_y"])
        with torch.no_grad():  # without gradients the sum is made in place
            report.compare(
                f"{tag}_y inference",
                center_pivot_conv4d(x, *weights, stride=stride),
                case[f"{tag}_y"],
            )
        (y * case.tensor(f"{tag}_g")).sum().backward()
        for key, one in zip(("gx", "gw1", "gb1", "gw2", "gb2"), (x, *weights), strict=True):
            assert one.grad is not None
            report.compare(f"{tag}_{key}", one.grad, case[f"{tag}_{key}"])
    keys = [str(key) for key in case["block_keys"]]
    shapes = json.loads(str(case["block_shapes"]))
    learner = HypercorrelationLearner((4, 6, 3), "square")
    load_into(
        learner,
        {
            key: torch.from_numpy(array_for(key, tuple(shape), seed))
            for key, shape in zip(keys, shapes, strict=True)
        },
    )
    with torch.no_grad():
        report.compare("block_y", learner.encoder_layer4(case.tensor("block_x")), case["block_y"])
    height, width = (int(side) for side in case["interp_size"])
    resized = resize_query(case.tensor("interp_x"), (height, width))
    report.compare("interp_y", resized, case["interp_y"])


def _corr(case: Case, report: Report) -> None:
    count = sum(key.startswith("q") for key in case.arrays)
    bounds = [0, *(int(bound) for bound in case["stack_ids"])]
    for level, (start, end) in zip((4, 3, 2), pairwise(bounds), strict=True):
        layers = range(count - end, count - start)
        queries, supports = ([case.tensor(f"{side}{i}") for i in layers] for side in "qs")
        report.compare(f"l{level}", dense_correlation(queries, supports), case[f"l{level}"])
