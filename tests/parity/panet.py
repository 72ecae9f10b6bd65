"""Runs the cases of PANet."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastfss.encoders import create_encoder
from fastfss.methods import PANet, PANetOutput
from fastfss.weights import load_into
from tests.parity.golden import TOLERANCE, Case, Report, Runner, normalised

# The first convolution's gradient is discontinuous: a ReLU or a pooling within rounding of a tie
# takes another branch. Our own float32 and float64 differ by up to 6e-4 in it, and by 1e-5 in its
# norm, over six seeds. Behind the last convolution there is no ReLU.
FLIP_TOLERANCE = 1e-3


def run_panet(case: Case, report: Report) -> None:
    KINDS[str(case.value("kind"))](case, report)


def _model(case: Case) -> PANet:
    model = PANet(create_encoder("panet_vgg16"))
    weights = case.weights()
    load_into(model, weights, rename=model.published_keys.to_ours, source=case.path.name)
    # Published files carry exactly these names, in this order.
    assert [model.published_keys.to_published(key) for key in model.state_dict()] == list(weights)
    return model.eval()


def _episodes(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, W, K, 3, H, W), (B, W, K, H, W), (B, N, 3, H, W), (B, N, H, W)."""
    batch, ways, shots = (int(case.arrays.get(key, 1)) for key in ("batch", "ways", "shots"))
    height, width = case["query"].shape[-2:]
    return (
        normalised(case["support"]).reshape(batch, ways, shots, 3, height, width),
        case.tensor("support_mask").reshape(batch, ways, shots, height, width),
        normalised(case["query"]).reshape(batch, -1, 3, height, width),
        case.tensor("query_mask").reshape(batch, -1, height, width),
    )


@torch.no_grad()
def _forward(case: Case, report: Report) -> None:
    model = _model(case)
    images, masks, query, _ = _episodes(case)
    _compare_features(case, report, model, images, query)
    shots = zip(images.unbind(1), masks.unbind(1), strict=True)
    tasks = [model.encode_support(*way) for way in shots]
    logits = torch.cat([model.segment(one, tasks).logits for one in query.unbind(1)])
    report.compare("out_logits of tasks", logits, case["out_logits"])
    _compare_head(case, report, model(images, masks, query))


def _train(case: Case, report: Report) -> None:
    model = _model(case).train()
    images, masks, query, query_mask = _episodes(case)
    _compare_features(case, report, model, images, query)
    output = model(images, masks, query)
    losses = model.loss(output, query_mask)
    _compare_head(case, report, output)
    for ours, theirs in {"query": "query", "alignment": "align", "total": "total"}.items():
        report.compare_if_there(case, f"loss_{theirs}", losses[ours])
    losses["total"].backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    last, first = (
        model.get_parameter(model.published_keys.to_ours(f"encoder.backbone.features.{place}"))
        for place in ("8.4.weight", "0.0.weight")
    )
    assert last.grad is not None
    assert first.grad is not None
    report.compare_if_there(case, "mid_grad_last_conv", last.grad[::64, ::64])
    report.compare_if_there(case, "grad_norm_last_conv", last.grad.norm())
    report.compare_if_there(
        case, "grad_norm_first_conv", first.grad.norm(), tolerance=FLIP_TOLERANCE
    )


def _compare_features(
    case: Case, report: Report, model: PANet, images: Tensor, query: Tensor
) -> None:
    # Way-major, then shot, then batch; queries last.
    supports = images.movedim(0, 2).flatten(0, 2)
    together = torch.cat([supports, query.transpose(0, 1).flatten(0, 1)])
    with torch.no_grad():
        maps = model.encoder(together, ("conv3_3", "conv5_3"))
    for key, name in {"mid_block3": "conv3_3", "mid_features": "conv5_3"}.items():
        report.compare_if_there(case, key, maps[name][:, ::16, ::3, ::3])


def _compare_head(case: Case, report: Report, output: PANetOutput) -> None:
    scores = output.scores.transpose(0, 1).flatten(0, 1)
    for key, ours in {"mid_prototypes": output.prototypes, "mid_dist": scores}.items():
        if key in case:
            report.compare(key, ours.reshape(case[key].shape), case[key])
    wanted = case.tensor("out_logits")
    report.compare("out_logits", output.logits, wanted)
    if "out_pred" in case:
        # Labels may differ where the reference's two best logits are closer than the tolerance.
        best = wanted.topk(2, dim=1).values
        sure = best[:, 0] - best[:, 1] > TOLERANCE * wanted.abs().max()
        assert torch.equal(output.logits.argmax(dim=1)[sure], case.tensor("out_pred").long()[sure])


def _not_yet(case: Case, report: Report) -> None:
    pytest.skip(f"panet: no runner for kind {case.value('kind')!r} yet")


KINDS: dict[str, Runner] = {
    "annotations": _not_yet,
    "forward": _forward,
    "sampler": _not_yet,
    "train": _train,
}
