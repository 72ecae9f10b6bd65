"""Runs the cases of PPNet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fastfss.encoders import create_encoder
from fastfss.methods import GraphConfig, PPNet, Prediction, Unlabelled
from fastfss.methods.part_segmenter import PUBLISHED_PARTS
from fastfss.methods.parts import episode_vectors
from fastfss.methods.ppnet import PLAIN_KEYS
from fastfss.weights import load_into
from tests.parity.golden import TOLERANCE, Case, Report, normalised


def run_ppnet(case: Case, report: Report) -> None:
    {"forward": _forward, "train": _train}[str(case.value("kind"))](case, report)


def _model(case: Case) -> PPNet:
    variant = str(case.value("model"))
    parts, graph = PUBLISHED_PARTS[variant], None  # type: ignore[index]
    if variant != "plain":
        parts = replace(parts, parts=int(case.arrays.get("center", parts.parts)))
    if variant == "graph":
        graph = GraphConfig(
            topk=int(case["topk"]),
            threshold=float(case["p_value_thres"]),
            group=int(case["un_bs"]),
            blend=float(case["pt_lambda"]),
        )
    weights = case.weights()
    deep = any(".layer3.22." in key for key in weights)
    encoder = create_encoder(f"ppnet_resnet{101 if deep else 50}")
    model = PPNet(encoder, variant=variant, parts=parts, graph=graph)  # type: ignore[arg-type]
    load_into(model, model.own_keys(weights), source=case.path.name)
    # Published files carry exactly these names.
    keys = PLAIN_KEYS if variant == "plain" else model.published_keys
    assert {keys.to_published(key) for key in model.state_dict()} == set(weights)
    return model.eval()


def _episode(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, W, K, 3, H, W), (B, W, K, H, W), (B, 3, H, W), (B, H, W)."""
    batch, ways, shots = (int(case.arrays.get(key, 1)) for key in ("batch", "ways", "shots"))
    height, width = case["query"].shape[-2:]
    return (
        normalised(case["support"]).reshape(batch, ways, shots, 3, height, width),
        case.tensor("support_mask").reshape(batch, ways, shots, height, width),
        normalised(case["query"]).reshape(batch, 3, height, width),
        case.tensor("query_mask").reshape(batch, height, width),
    )


def _support_starts(case: Case, model: PPNet, ways: int) -> Tensor | None:
    """Ours are (B, 1 + W, G), background first; the case's are in the order of the calls."""
    if model.variant == "plain":
        return None
    calls = case.tensor("kmeans_start")[: ways + 1]
    return torch.cat([calls[ways:], calls[:ways]]).unsqueeze(0)


def _query_starts(case: Case, model: PPNet, present: Tensor) -> Tensor | None:
    """Background, then the ways that the query's prediction holds; others start anywhere."""
    if model.variant == "plain":
        return None
    ways = len(present)
    calls = case.tensor("kmeans_start")[ways + 1 :]
    starts = torch.zeros(1 + ways, calls.shape[1], dtype=torch.int64)
    starts[torch.cat([torch.ones(1, dtype=torch.bool), present])] = calls
    return starts.unsqueeze(0)


def _unlabelled(case: Case, report: Report, model: PPNet) -> Unlabelled | None:
    if "unlabelled" not in case:
        return None
    images, segments = normalised(case["unlabelled"]), case.tensor("segments")
    _compare_features(case, report, model, images, "_call2")
    if segments.ndim == 3:
        segments = segments.unsqueeze(0)
    return model.encode_unlabelled(images.unsqueeze(0), segments)


@torch.no_grad()
def _forward(case: Case, report: Report) -> None:
    model = _model(case)
    images, masks, query, _ = _episode(case)
    ways = images.shape[1]
    assert len(query) == 1, "several episodes are segmented one after another"
    _compare_features(case, report, model, torch.cat([images.flatten(0, 2), query]), "")
    unlabelled = _unlabelled(case, report, model)
    tasks = [model.encode_support(images[:, way], masks[:, way]) for way in range(ways)]
    starts = _support_starts(case, model, ways)
    tensors = [task.tensors for task in tasks]
    prototypes, centres = model.make_prototypes(tensors, None, starts)
    if centres is not None:
        _compare_centres(case, report, model, tensors, centres)
    if unlabelled is not None:
        _compare_graph(case, report, model, tensors, prototypes, unlabelled)
    scores = model.scores(model.features(query), model.prototypes(tasks, unlabelled, starts))
    prediction = model.segment(query, tasks, unlabelled=unlabelled, starts=starts)
    _compare_head(case, report, scores, prediction.logits)
    # The training forward in evaluation mode is the same.
    output = model(images, masks, query, unlabelled=unlabelled, starts=starts)
    _compare_head(case, report, output.scores, output.logits)


def _train(case: Case, report: Report) -> None:
    model = _model(case).train()
    images, masks, query, query_mask = _episode(case)
    ways = images.shape[1]
    _compare_features(case, report, model, torch.cat([images.flatten(0, 2), query]), "")
    unlabelled = _unlabelled(case, report, model)
    starts = _support_starts(case, model, ways)
    with torch.no_grad():  # tells which ways the prediction holds: others have no start
        best = model(images, masks, query, unlabelled=unlabelled, starts=starts).scores.argmax(1)
    present = torch.stack([(best == way + 1).any() for way in range(ways)])
    output = model(
        images,
        masks,
        query,
        unlabelled=unlabelled,
        starts=starts,
        query_starts=_query_starts(case, model, present),
    )
    labels = torch.arange(1, ways + 1)[None, :, None, None, None] * (masks == 1)
    losses = model.loss(output, query_mask, (labels, query_mask))
    _compare_head(case, report, output.scores, output.logits)
    if output.centres is not None and output.query_centres is not None:
        calls = [
            *output.centres[0, 1:],
            output.centres[0, 0],
            output.query_centres[0, 0],
            *output.query_centres[0, 1:][present],
        ]
        report.compare_if_there(case, "mid_kmeans_centres", torch.stack(calls)[..., ::8])
    if output.semantic is not None:
        large = model.enlarge(output.semantic, (query.shape[2], query.shape[3]))
        report.compare_if_there(case, "mid_semantic", large[:, :, ::6, ::6])
    names = {"query": "query", "alignment": "align", "semantic": "base", "total": "total"}
    for ours in losses:
        report.compare_if_there(case, f"loss_{names[ours]}", losses[ours])
    losses["total"].backward()
    gradient = model.encoder.get_parameter("layer4.0.conv1.weight").grad
    assert gradient is not None
    report.compare_if_there(case, "grad_norm_layer4_conv1", gradient.norm())


@torch.no_grad()
def _compare_features(
    case: Case, report: Report, model: PPNet, images: Tensor, suffix: str
) -> None:
    """Images as the reference encodes them together: way by way, shot by shot; queries last."""
    maps = model.encoder(images, ("layer2", "layer4"))
    for name in ("layer2", "layer4"):
        probe = maps[name][:, ::16, ::3, ::3]
        report.compare_if_there(case, f"mid_{name}{suffix}", probe)


def _compare_centres(
    case: Case, report: Report, model: PPNet, ways: list[Mapping[str, Tensor]], centres: Tensor
) -> None:
    features, regions = ([one[key] for one in ways] for key in ("features", "regions"))
    background, *of_ways = episode_vectors(features, regions, model.parts)
    counts = [int(one.counts) for one in (*of_ways, background)]
    assert counts == case["kmeans_N"].tolist()
    calls = torch.cat([centres[0, 1:], centres[0, :1]])
    report.compare_if_there(case, "mid_kmeans_centres", calls[..., ::8])


def _compare_graph(
    case: Case,
    report: Report,
    model: PPNet,
    ways: list[Mapping[str, Tensor]],
    prototypes: Tensor,
    unlabelled: Unlabelled,
) -> None:
    vectors = model.class_vectors([one["vectors"] for one in ways])
    _, attended = model.latentGraph(prototypes, vectors, unlabelled, model.graph)
    found = torch.stack(attended)[:, 0, ..., ::8]
    names = ["background", *(f"way{way + 1}" for way in range(len(ways)))]
    for number, name in enumerate(names):
        report.compare_if_there(case, f"mid_graph_{name}", found[:, number])


def _compare_head(case: Case, report: Report, scores: Tensor, logits: Tensor) -> None:
    wanted = case.tensor("out_logits")
    if "mid_dist" in case:
        report.compare("mid_dist", scores, case["mid_dist"])
    report.compare("out_logits", logits, wanted)
    if "out_pred" in case:
        # Labels may differ where the reference's two best logits are closer than the tolerance.
        best = wanted.topk(2, dim=1).values
        sure = best[:, 0] - best[:, 1] > TOLERANCE * wanted.abs().max()
        labels = Prediction(logits, logits[:, 1:]).labels
        assert torch.equal(labels[sure], case.tensor("out_pred").long()[sure])
