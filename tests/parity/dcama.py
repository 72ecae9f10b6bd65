"""Runs the cases of DCAMA."""

from __future__ import annotations

import torch
from torch import Tensor

from fastfss.encoders import create_encoder
from fastfss.methods import DCAMA
from tests.parity.golden import Case, Report, regenerated

# A key's bias shifts whole softmax rows: its gradient is exactly 0, and stored as rounding.
ROUNDING = 1e-6
GRADIENT_TOLERANCE = 1e-3
# On the 3 x 3 grid of the deepest stage one ReLU within rounding of zero is a hundredth of the
# gradient: with two threads one of conv1 flips (1.4e-2), with one thread none does (2e-4), and the
# logits agree to 2e-6 either way.
FLIP_TOLERANCE = 5e-2
DEEPEST = ("model.DCAMA_blocks.2.", "model.conv1.")
UNUSED = (
    "feature_extractor.fc.",
    "feature_extractor.norm.",
    "feature_extractor.head.",
    "model.pe.",
)


def run_dcama(case: Case, report: Report) -> None:
    {"forward": _forward, "train": _train}[str(case.value("kind"))](case, report)


def _model(case: Case, **options: float) -> DCAMA:
    name = {"swin": "swin_b"}.get(str(case.value("backbone")), str(case.value("backbone")))
    model = DCAMA(create_encoder(f"blocks_{name}"), **options)
    weights = case.weights()
    model.load_checkpoint(weights, case.path.name)
    names = {model.published_keys.to_published(key) for key in model.state_dict()}
    computed = (".relative_position_index", ".attn_mask")
    assert names == {k for k in weights if not k.startswith(UNUSED) and not k.endswith(computed)}
    return model.eval()


@torch.no_grad()
def _forward(case: Case, report: Report) -> None:
    model = _model(case)
    images, masks, query, _ = case.episode() if "query" in case else regenerated(case)
    maps = model.encoder(query)
    first = model.encoder(images[0])
    swin = case.value("backbone") == "swin"
    names = [feature.name for feature in model.encoder.features]
    for index in (int(number) for number in case["feat_index"]):
        step = 6 if swin and index == 1 else 2
        for suffix, found in (("", maps), ("_support", first)):
            probe = found[names[index]][:, ::16, ::step, ::step]
            report.compare_if_there(case, f"mid_feat_{index}{suffix}", probe)
    task = model.encode_support(images, masks)
    coarse = model.coarse_masks(model.queries(maps), task)
    flat = [layer.flatten(1) for stage in coarse for layer in stage.unbind(1)]
    for index, one in enumerate(flat):
        report.compare_if_there(case, f"mid_coarse_{index}", one)
    found_maps: dict[str, Tensor] = {}
    steps = {"mixer1": 4 if swin else 2, "mixer2": 8 if swin else 4, "conv3": 4 if swin else 2}
    modules = {name: name for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "mixer2")}
    # Its first convolution is taken apart.
    modules["mixer1"] = "mixer1.3"
    hooks = [
        model.model.get_submodule(module).register_forward_hook(
            lambda _module, _inputs, output, name=name: found_maps.update({name: output.clone()})
        )
        for name, module in modules.items()
    ]
    prediction = model.segment(query, task)
    for hook in hooks:
        hook.remove()
    assert found_maps.keys() == modules.keys()
    for name, one in found_maps.items():
        step = steps.get(name, 2)
        channels = 4 if name == "mixer2" else 8
        report.compare_if_there(case, f"mid_{name}", one[:, ::channels, ::step, ::step])
    stride = int(case.value("logits_stride", 1))  # type: ignore[call-overload]
    report.compare("out_logits", prediction.logits[:, :, ::stride, ::stride], case["out_logits"])
    report.labels("out_pred", prediction.labels, case["out_pred"], prediction.margins[:, 0])


def _train(case: Case, report: Report) -> None:
    # In float64 no ReLU flips whatever the order of sums; float32 runs our own kernels.
    for dtype in (torch.float64, torch.float32):
        model = _model(case, dropout=0.0).train().to(dtype)
        images, masks, query, query_mask = case.episode()
        logits = model([image.to(dtype) for image in images], masks, query.to(dtype))
        report.compare(f"out_logits {dtype}", logits, case["out_logits"])
        loss = model.loss(logits, query_mask)
        report.compare(f"loss {dtype}", loss, case["loss"])
        loss.backward()
        keys = [str(key) for key in case["grad_norm_keys"]]
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        assert set(trained) == set(keys)
        for key, wanted in zip(keys, case["grad_norms"], strict=True):
            gradient = trained[key].grad
            assert gradient is not None
            if key.endswith("linears.1.bias"):
                assert float(gradient.norm()) < ROUNDING and wanted < ROUNDING
                continue
            flips = dtype == torch.float32 and key.startswith(DEEPEST)
            tolerance = FLIP_TOLERANCE if flips else GRADIENT_TOLERANCE
            norm = gradient.double().norm()
            report.compare(f"grad_{key} {dtype}", norm, wanted, tolerance=tolerance)
