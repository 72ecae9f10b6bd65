"""Runs the cases of PFENet."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from fastfss.data import letterbox_image, letterbox_labels
from fastfss.encoders import create_encoder
from fastfss.methods import PFENet
from fastfss.task import Task
from fastfss.weights import load_into
from tests.parity.golden import TOLERANCE, Case, Report, normalised

# The published float32 runs differ by up to 6e-5 in this norm among themselves and from float64;
# the specification allows 5e-4.
GRADIENT_TOLERANCE = 5e-4

Kept = dict[str, list[Tensor]]


def run_pfenet(case: Case, report: Report) -> None:
    kinds = {"forward": _forward, "train": _train, "prior": _prior, "letterbox": _letterbox}
    kinds[str(case.value("kind"))](case, report)


def _model(case: Case) -> PFENet:
    encoder = create_encoder(f"pfenet_{case.value('backbone')}")
    model = PFENet(encoder, pyramid=case["ppm_scales"].tolist())
    weights = case.weights()
    load_into(model, weights, rename=model.published_keys.to_ours, source=case.path.name)
    names = {model.published_keys.to_published(key) for key in model.state_dict()}
    assert names == set(weights)
    return model.eval()


def _episode(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Supports (B, K, 3, H, W), their masks, queries (B, 3, H, W), their masks; of way 0."""
    batched = case["query"].ndim == 4
    names = ("support", "support_mask", "query", "query_mask")
    arrays = {name: case[name] if batched else case[name][None] for name in names}
    images, query = normalised(arrays["support"][:, 0]), normalised(arrays["query"])
    masks = torch.from_numpy(arrays["support_mask"][:, 0])
    return images, masks, query, torch.from_numpy(arrays["query_mask"])


@contextmanager
def _kept(model: PFENet) -> Iterator[Kept]:
    """Collects the outputs of stages and head parts, call by call."""
    kept: Kept = {}

    def output(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, result: Tensor) -> None:
            # Later additions may write into it.
            kept.setdefault(name, []).append(result.detach().clone())

        return hook

    def merged(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            kept.setdefault(name, []).append(inputs[0].detach()[:, :256].clone())

        return hook

    with ExitStack() as hooks:
        parts: dict[str, nn.Module] = {
            **{f"layer{n}": getattr(model.encoder, f"layer{n}") for n in (1, 2, 3, 4)},
            **{"down_query": model.down_query, "res2": model.res2},
        }
        for name, part in parts.items():
            hooks.callback(part.register_forward_hook(output(name)).remove)
        # What init_merge gives is what the next module takes, before alpha_conv's addition.
        takers = [model.beta_conv[0], *model.alpha_conv]
        for index, taker in enumerate(takers):
            hooks.callback(taker.register_forward_pre_hook(merged(f"merge_{index}")).remove)
        yield kept


def _forward(case: Case, report: Report) -> None:
    model = _model(case)
    images, masks, query, _ = _episode(case)
    with torch.no_grad():
        with _kept(model) as kept:
            task = model.encode_support(images, masks)
        _compare_supports(case, report, kept, images.shape[1])
        report.compare_if_there(case, "mid_support_vector", task.tensors["vector"].mean(dim=1))

        stride = int(case.value("logits_stride", 1))  # type: ignore[call-overload]
        with _kept(model) as kept:
            prediction = model.segment(query, task)
        logits = prediction.logits
        report.compare("out_logits", logits[:, :, ::stride, ::stride], case["out_logits"])
        _compare_labels(case, report, "out_pred", logits)
        for name in ("layer1", "layer2", "layer3", "layer4", "down_query"):
            report.compare_if_there(case, f"mid_{name}", kept[name][0][:, ::16, ::3, ::3])
        for index in range(len(model.pyramid)):
            part = kept[f"merge_{index}"][0][:, ::16, ::4, ::4]
            report.compare_if_there(case, f"mid_merge_{index}", part)
        report.compare_if_there(case, "mid_res2", kept["res2"][0][:, ::16, ::3, ::3])

        high = model.encoder(query, ("layer4",))["layer4"]
        report.compare_if_there(case, "mid_prior_per_shot", model.priors(high, task))
        output = model(images, masks, query)
        report.compare_if_there(case, "mid_prior", output.prior)
        for index, inner in enumerate(output.auxiliary):
            stride = 2 if inner.shape[-1] == 60 else 1
            report.compare_if_there(case, f"out_inner_{index}", inner[:, :, ::stride, ::stride])


def _compare_supports(case: Case, report: Report, kept: Kept, shots: int) -> None:
    """Call 1 is the query's, call k + 2 that of shot k; ours passes all shots at once."""
    for name in ("layer1", "layer2", "layer3", "layer4"):
        maps = kept[name][0].unflatten(0, (-1, shots))[..., ::16, ::3, ::3]
        for shot in range(shots):
            report.compare_if_there(case, f"mid_{name}_call{shot + 2}", maps[:, shot])


def _compare_labels(case: Case, report: Report, key: str, logits: Tensor) -> None:
    """Equal where the two logits differ by more than the tolerance."""
    if key not in case:
        return
    sure = (logits[:, 1] - logits[:, 0]).abs() > TOLERANCE * logits.abs().max()
    wanted = case.tensor(key).long()
    report.compare(key, torch.where(sure, logits.argmax(dim=1), wanted), wanted)


def _train(case: Case, report: Report) -> None:
    images, masks, query, query_mask = _episode(case)
    for variant, statistics in (("bntrain", True), ("bneval", False)):
        model = _model(case)
        assert model.encoder.batch_statistics  # as published, without asking for it
        model.encoder.batch_statistics = statistics
        model.train()
        for module in model.modules():
            if isinstance(module, nn.Dropout2d):
                module.p = 0.0  # the case's note: dropout off
        output = model(images, masks, query)
        losses = model.loss(output, query_mask)
        losses["total"].backward()
        for ours, theirs in {"main": "main", "auxiliary": "aux", "total": "total"}.items():
            report.compare_if_there(case, f"loss_{theirs}_{variant}", losses[ours])
        report.compare_if_there(case, f"mid_prior_{variant}", output.prior)
        _compare_labels(case, report, f"out_pred_{variant}", output.logits.detach())
        trained = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert not any(name.startswith("encoder.") for name in trained)
        for name, key in (("down_query", "down_query.0.weight"), ("cls3", "cls.3.weight")):
            report.compare_if_there(
                case,
                f"grad_norm_{name}_{variant}",
                trained[key].norm(),
                tolerance=GRADIENT_TOLERANCE,
            )
        if statistics:
            norm = model.encoder.get_submodule("layer1.0.bn1")
            for statistic in ("running_mean", "running_var"):
                key = f"{statistic}_layer1_0_bn1_after"
                report.compare_if_there(case, key, getattr(norm, statistic))


def _prior(case: Case, report: Report) -> None:
    """The features are given; the second multiplication by the mask is the Task's."""
    query, support = case.tensor("query_feat"), case.tensor("support_feat")
    masks = (case.tensor("support_mask") == 1).float()
    small = nn.functional.interpolate(
        masks, support.shape[-2:], mode="bilinear", align_corners=True
    )
    report.compare_if_there(case, "mid_mask_small", small)
    vector = torch.zeros(*support.shape[:2], 256)
    tensors = {"vector": vector, "high": support * small.unsqueeze(2), "object": small}
    model = PFENet(create_encoder("resnet18"))
    priors = model.priors(query, Task("pfenet", tensors))
    report.compare_if_there(case, "mid_prior_per_shot", priors)
    report.compare("out_prior", priors.mean(dim=1), case["out_prior"])
    # Each episode alone, all of its shots in one call.
    alone = [
        model.priors(query[item : item + 1], Task("pfenet", _item(tensors, item)))
        for item in range(len(query))
    ]
    report.compare("out_prior", torch.cat(alone).mean(dim=1), case["out_prior"])


def _item(tensors: dict[str, Tensor], item: int) -> dict[str, Tensor]:
    return {key: one[item : item + 1] for key, one in tensors.items()}


def _letterbox(case: Case, report: Report) -> None:
    size = int(case["size"])
    for key in (name for name in case.arrays if name.startswith("image_")):
        number = key.removeprefix("image_")
        image = case.tensor(key).permute(2, 0, 1).unsqueeze(0).float()
        labels = case.tensor(f"label_{number}").unsqueeze(0)
        for prefix, enlarge in (("out", True), ("out_test", False)):
            framed = letterbox_image(image, size, enlarge=enlarge)[0].permute(1, 2, 0)
            report.compare_if_there(case, f"{prefix}_image_{number}", framed[::3, ::3])
            framed_labels = letterbox_labels(labels, size, enlarge=enlarge)[0]
            # Labels are exact or wrong.
            wanted = f"{prefix}_label_{number}"
            report.compare_if_there(case, wanted, framed_labels, tolerance=0.0)
