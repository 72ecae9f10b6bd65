"""Runs the cases of PPNet."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfss.encoders import create_encoder
from fastfss.methods import GraphConfig, PPNet, Prediction
from fastfss.methods.parts import episode_vectors
from fastfss.methods.ppnet import PLAIN_KEYS
from fastfss.weights import load_into
from tests.parity.golden import TOLERANCE, Case, Report, normalised


def run_ppnet(case: Case, report: Report) -> None:
    {"forward": _forward, "train": _train}[str(case.value("kind"))](case, report)


def _model(case: Case) -> PPNet:
    variant = str(case.value("model"))
    graph = None
    if variant == "graph":
        graph = GraphConfig(
            topk=int(case["topk"]),
            threshold=float(case["p_value_thres"]),
            group=int(case["un_bs"]),
            blend=float(case["pt_lambda"]),
        )
    backbone = str(case.value("backbone", "resnet50"))
    model = PPNet(create_encoder(f"ppnet_{backbone}"), variant=variant, graph=graph)  # type: ignore[arg-type]
    weights = case.weights()
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


def _support_starts(case: Case, ways: int) -> Tensor | None:
    """Ours are (B, 1 + W, G), background first; the case's are in the order of the calls."""
    if "kmeans_start" not in case:
        return None
    calls = case.tensor("kmeans_start")[: ways + 1]
    return torch.cat([calls[ways:], calls[:ways]]).unsqueeze(0)


def _query_starts(case: Case, ways: int, present: Tensor) -> Tensor:
    """Background, then the ways that the query's prediction holds; others start anywhere."""
    calls = case.tensor("kmeans_start")[ways + 1 :]
    starts = torch.zeros(1 + ways, calls.shape[1], dtype=torch.int64)
    starts[torch.cat([torch.ones(1, dtype=torch.bool), present])] = calls
    return starts.unsqueeze(0)


@torch.no_grad()
def _forward(case: Case, report: Report) -> None:
    model = _model(case)
    images, masks, query, _ = _episode(case)
    ways = images.shape[1]
    assert len(query) == 1, "several episodes are segmented one after another"
    _compare_features(case, report, model, images, query, "")
    tasks = [model.encode_support(images[:, way], masks[:, way]) for way in range(ways)]
    unlabelled = None
    if "unlabelled" in case:
        pool = normalised(case["unlabelled"]).unsqueeze(0)
        segments = case.tensor("segments")
        segments = segments.unsqueeze(0) if segments.ndim == 3 else segments
        unlabelled = model.encode_unlabelled(pool, segments)
        _compare_features(case, report, model, pool[:, :0], pool[0], "_call2")
    starts = _support_starts(case, ways)
    tensors = [task.tensors for task in tasks]
    prototypes, centres = model.make_prototypes(tensors, None, starts)
    _compare_centres(case, report, tensors, model, centres)
    if unlabelled is not None:
        _compare_graph(case, report, model, prototypes, tensors, unlabelled)
        prototypes = model.prototypes(tasks, unlabelled, starts)
    scores = model.scores(model.features(query), prototypes)
    prediction = model.segment(query, tasks, unlabelled=unlabelled, starts=starts)
    _compare_head(case, report, scores, prediction.logits)
    # The training forward in evaluation mode is the same.
    output = model(images, masks, query, unlabelled=unlabelled, starts=starts)
    _compare_head(case, report, output.scores, output.logits)


def _train(case: Case, report: Report) -> None:
    model = _model(case).train()
    images, masks, query, query_mask = _episode(case)
    ways = images.shape[1]
    # A first pass tells which ways the prediction holds: others have no start.
    state = {key: value.clone() for key, value in model.state_dict().items()}
    _compare_features(case, report, model, images, query, "")
    starts = _support_starts(case, ways)
    with torch.no_grad():
        best = model(images, masks, query, starts=starts).scores.argmax(dim=1)
    model.load_state_dict(state)
    present = torch.stack([(best == way + 1).any() for way in range(ways)])
    output = model(
        images,
        masks,
        query,
        starts=starts,
        query_starts=_query_starts(case, ways, present),
    )
    labels = torch.arange(1, ways + 1)[None, :, None, None, None] * (masks == 1)
    losses = model.loss(output, query_mask, (labels, query_mask))
    _compare_head(case, report, output.scores, output.logits)
    if output.centres is not None and output.query_centres is not None:
        calls = [
            *output.centres[0, 1:],
            output.centres[0, 0],
            output.query_centres[0, 0],
            *(c for c, there in zip(output.query_centres[0, 1:], present, strict=True) if there),
        ]
        report.compare_if_there(case, "mid_kmeans_centres", torch.stack(calls)[..., ::8])
    if output.semantic is not None:
        size = (query.shape[2], query.shape[3])
        large = model.enlarge(output.semantic, size)
        report.compare_if_there(case, "mid_semantic", large[:, :, ::6, ::6])
    for ours, theirs in (
        ("query", "query"),
        ("alignment", "align"),
        ("semantic", "base"),
        ("total", "total"),
    ):
        if ours in losses:
            report.compare_if_there(case, f"loss_{theirs}", losses[ours])
    losses["total"].backward()
    gradient = model.encoder.get_parameter("layer4.0.conv1.weight").grad
    assert gradient is not None
    report.compare_if_there(case, "grad_norm_layer4_conv1", gradient.norm())


def _compare_features(
    case: Case, report: Report, model: PPNet, images: Tensor, query: Tensor, suffix: str
) -> None:
    # Way-major, then shot, then batch; queries last.
    together = torch.cat([images.movedim(0, 2).flatten(0, 2), query]) if images.numel() else query
    with torch.no_grad():
        maps = model.encoder(together, ("layer2", "layer4"))
    for name in ("layer2", "layer4"):
        probe = maps[name][:, ::16, ::3, ::3]
        report.compare_if_there(case, f"mid_{name}{suffix}", probe)


def _compare_centres(case, report, tensors, model, centres) -> None:  # type: ignore[no-untyped-def]
    if centres is None:
        return
    features, regions = ([one[key] for one in tensors] for key in ("features", "regions"))
    background, *ways = episode_vectors(features, regions, model.parts)
    counts = [int(one.counts) for one in (*ways, background)]
    assert counts == case["kmeans_N"].tolist()
    calls = torch.cat([centres[0, 1:], centres[0, :1]])
    report.compare_if_there(case, "mid_kmeans_centres", calls[..., ::8])


def _compare_graph(case, report, model, prototypes, tensors, unlabelled) -> None:  # type: ignore[no-untyped-def]
    vectors = model.class_vectors([one["vectors"] for one in tensors])
    _, attended = model.latentGraph(prototypes, vectors, unlabelled, model.graph)
    found = torch.stack(attended)[:, 0, ..., ::8]
    for number, name in enumerate(
        ["background", *(f"way{way + 1}" for way in range(len(tensors)))]
    ):
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
