"""Runs the cases of CANet and PGNet, both as lizhaoliu-Lec/DENet implements them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastfss.encoders import Encoder, create_encoder
from fastfss.methods import CANet, PGNet
from fastfss.methods.graph_attention import as_rows
from fastfss.task import Task
from fastfss.weights import load_into
from tests.parity.golden import Case, Report, normalised

ENCODERS = {
    "ResNet50": "dilated_resnet50",
    "ResNet101": "dilated_resnet101",
    "DenseNet121": "dilated_densenet121",
}
# The specification's bound for gradient norms.
GRADIENT_TOLERANCE = 1e-3
# Near this share of the largest logit the two classes may change places (float32 of both sides).
TIE = 1e-4


def run_canet(case: Case, report: Report) -> None:
    refine_time = int(case.value("refine_time", 3))  # type: ignore[call-overload]
    _run(case, report, CANet(_encoder(case), refine_time=refine_time, dropout=0.0))


def run_pgnet(case: Case, report: Report) -> None:
    _run(case, report, PGNet(_encoder(case), dropout=0.0))


def _encoder(case: Case) -> Encoder:
    # Cases without an entry are the ResNet-50's, as their keys show.
    default = "ResNet50" if "backbone.layer3.5.conv1.weight" in case["keys"] else "DenseNet121"
    return create_encoder(ENCODERS[str(case.value("backbone", default))])


def _run(case: Case, report: Report, model: CANet | PGNet) -> None:
    weights = case.weights()
    load_into(model, weights, rename=model.published_keys.to_ours, source=case.path.name)
    names = {model.published_keys.to_published(key) for key in model.state_dict()}
    assert names == set(weights)
    episode = _episode(case)
    {"forward": _forward, "train": _train}[str(case.value("kind"))](case, report, model, *episode)


def _episode(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (B, W, K, 3, H, W), their masks, queries (B, 3, H, W), their masks."""
    images, masks = normalised(case["support"]), case.tensor("support_mask")
    query, query_mask = normalised(case["query"]), case.tensor("query_mask")
    if images.ndim == 5:
        return images[None], masks[None], query[None], query_mask[None]
    return images, masks, query, query_mask


def _forward(
    case: Case,
    report: Report,
    model: CANet | PGNet,
    images: Tensor,
    masks: Tensor,
    query: Tensor,
    query_mask: Tensor,
) -> None:
    model.eval()
    with torch.no_grad():
        features = model.embed(query)
        report.compare_if_there(case, "mid_embedding_query", _probe(features))
        supports = model.embed(images.flatten(0, 2))
        report.compare_if_there(case, "mid_embedding_support", _probe(supports))
        tasks = [
            model.encode_support(*way)
            for way in zip(images.unbind(1), masks.unbind(1), strict=True)
        ]
        middle = _canet if isinstance(model, CANet) else _pgnet
        middle(case, report, model, features, tasks)  # type: ignore[arg-type]
        low = model.head(features, tasks)  # (B, W, 2, h, w)
        report.compare_if_there(case, "out_logits", low[:, 0])
        report.compare_if_there(case, "out_per_way", low.transpose(0, 1))
        prediction = model.segment(query, tasks)
        report.compare_if_there(case, "out_binary", _binary(prediction.logits)[0, ..., ::5, ::5])
        assert torch.allclose(
            prediction.margins, _binary(prediction.logits).diff(dim=2)[:, :, 0], atol=1e-5
        )
        margins = prediction.margins.flatten(0, 1)
        sure = margins.abs() > TIE * prediction.logits.abs().max()
        assert torch.equal((margins > 0)[sure], (case.tensor("out_pred") == 1)[sure])
        # The copy for inference takes other paths: folded norms, channels-last.
        fast = model.for_inference()
        report.compare("for_inference", fast.segment(query, tasks).logits, prediction.logits)
        own = fast.encode_support(images[:, 0], masks[:, 0])
        again = fast.segment(query, [own, *tasks[1:]]).logits
        report.compare("for_inference_support", again, prediction.logits)


def _binary(scores: Tensor) -> Tensor:
    """The published pairs (B, W, 2, H, W) of scores (B, W + 1, H, W): other, own."""
    pairs = []
    for way in range(1, scores.shape[1]):
        others = [scores[:, i] for i in range(scores.shape[1]) if i != way]
        pairs.append(torch.stack([torch.stack(others).amax(0), scores[:, way]], dim=1))
    return torch.stack(pairs, dim=1)


def _canet(
    case: Case, report: Report, model: CANet, features: Tensor, tasks: Sequence[Task]
) -> None:
    prototypes = tasks[0].tensors["prototype"]
    report.compare_if_there(case, "mid_prototype", prototypes.transpose(0, 1))
    fused = model.fused(features, prototypes)
    shape = prototypes.shape[:2]
    report.compare_if_there(case, "mid_fuse_first", _probe(fused.unflatten(0, shape)[:, 0]))
    steps = torch.stack([step.unflatten(0, shape) for step in model.refined(fused)])
    by_shot = steps.permute(2, 0, 1, 3, 4, 5).clone()  # (K, steps, B, 2, h, w)
    # The reference adds the other shots' final logits into this entry.
    by_shot[0, -1] = by_shot[:, -1].sum(0)
    report.compare_if_there(case, "mid_iterations", by_shot.flatten(0, 1))


def _pgnet(
    case: Case, report: Report, model: PGNet, features: Tensor, tasks: Sequence[Task]
) -> None:
    task = tasks[0]
    inputs: dict[str, Tensor] = {}
    handles = [
        module.register_forward_hook(lambda _, args, out, name=name: inputs.update({name: args[0]}))
        for name, module in (("sum", model.residual1), ("aspp", model.classifier))
    ]
    model.head(features, [task])
    for handle in handles:
        handle.remove()
    report.compare_if_there(case, "mid_pyramid_sum", _probe(inputs["sum"]))
    report.compare_if_there(case, "mid_aspp", _probe(inputs["aspp"]))
    for number, maps in enumerate(model.graph_maps(features, [task]), start=1):
        report.compare_if_there(case, f"mid_gau{number}", _probe(maps))
    # The support as the reference has it: the last row at every position outside of the object.
    key, weight = task.tensors["key"], task.tensors["weight"]
    inside = weight[:, :, :-1, None] == 1
    rows = torch.where(inside, key[:, :, :-1], key[:, :, -1:])  # (B, K, h * w, 256)
    size = features.shape[2:]
    maps = rows.flatten(0, 1).transpose(1, 2).unflatten(2, size)
    report.compare_if_there(case, "mid_Fs", _probe(maps))
    quarter = nn.functional.adaptive_avg_pool2d(features, [max(1, side // 4) for side in size])
    for name, unit, query, step in (
        ("mid_attention1", model.gau_1, quarter, (slice(None, None, 2), slice(None, None, 7))),
        ("mid_attention3", model.gau_3, features, (slice(None, None, 11), slice(None, None, 13))),
    ):
        logits = as_rows(unit.phi(query)) @ unit.keys(rows.flatten(1, 2)).transpose(1, 2)
        report.compare_if_there(case, name, logits.softmax(2)[:, step[0], step[1]])


def _train(
    case: Case,
    report: Report,
    model: CANet | PGNet,
    images: Tensor,
    masks: Tensor,
    query: Tensor,
    query_mask: Tensor,
) -> None:
    model.train()
    logits = model(images[:, 0], masks[:, 0], query)
    report.compare("out_logits", logits, case["out_logits"])
    loss = model.loss(logits, query_mask)
    report.compare("loss", loss, case["loss"])
    buffer = model.encoder.state_dict()
    for key in case.arrays:
        if key.endswith("_after"):
            name = key.removesuffix("_after").replace("_running", ".running")
            report.compare(key, buffer[name], case[key])
    loss.backward()
    ours = {
        model.published_keys.to_published(name): parameter.grad
        for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }
    keys = [str(key) for key in case["grad_keys"]]
    assert set(ours) == set(keys), "other parameters are trained than published"
    # Gradients that are zero in exact arithmetic (theta.bias) are rounding on both sides.
    rounding = 1e-6 * float(case["grad_norms"].max())
    for key, wanted in zip(keys, case["grad_norms"], strict=True):
        norm = ours[key].double().norm()
        if wanted < rounding:
            assert norm < rounding, f"{key}: {norm:.1e} where the reference has {wanted:.1e}"
        else:
            report.compare(f"grad_{key}", norm, wanted, tolerance=GRADIENT_TOLERANCE)


def _probe(maps: Tensor) -> Tensor:
    return maps[:, ::16, ::3, ::3]
