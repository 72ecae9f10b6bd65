"""Runs the cases of the published accumulators."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fastfss.protocols import (
    ConfusionMeter,
    DENetBinaryMeter,
    DENetFullMeter,
    FoldMeter,
    PANetMeter,
    PFENetMeter,
)
from fastfss.protocols.denet_metrics import Predictions
from tests.parity.golden import Case, Report


def run_metrics(case: Case, report: Report) -> None:
    kinds = {"denet_binary": _binary, "denet_full": _full, "protocols": _protocols}
    kinds[str(case.value("kind"))](case, report)


def run_hsnet_eval(case: Case, report: Report) -> None:
    meter = FoldMeter(case["class_ids_of_fold"].tolist())
    truth = case.tensor("gt").clone()
    truth[case.tensor("ignore") == 1] = 255  # the published code keeps a map of its own for these
    batches = [
        meter.update(*batch)
        for batch in zip(case.tensor("pred"), truth, case.tensor("class_id"), strict=True)
    ]
    for key, buffer, kind in (("inter", meter.intersection, 0), ("union", meter.union, 1)):
        _equal(report, case, key, torch.stack([batch[kind].T for batch in batches]))
        _equal(report, case, f"{key}_buf", _widened(buffer.T, case[f"{key}_buf"].shape[1]))
    for key, figure in meter.compute().items():
        report.compare(key, _tensor(figure), case[key])


def _binary(case: Case, report: Report) -> None:
    labels = int(case["class_ids"].max()) + 1
    modes: list[tuple[str, str, Predictions]] = [
        ("", "pred", "binary"),
        ("_multi", "pred_multi", "published"),
    ]
    for suffix, key, predictions in modes:
        if key not in case:
            continue
        meter = DENetBinaryMeter(labels, predictions)
        batches = zip(
            case.tensor(key).split(5),
            case.tensor("label").split(5),
            case.tensor("class_ids").split(5),
            strict=True,
        )
        for batch in batches:
            meter.update(*batch)
        iou = meter.class_iou()
        assert list(iou) == case[f"out_classes{suffix}"].tolist()
        seen = meter.counts[list(iou)]
        _equal(report, case, f"out_inter{suffix}", seen[:, 0])
        _equal(report, case, f"out_union{suffix}", seen[:, 1])
        _percent(report, case, f"out_iou{suffix}", list(iou.values()))
        figures = meter.compute()
        _percent(report, case, f"out_miou{suffix}", figures["miou"])
        _percent(report, case, f"out_fb_iou{suffix}", figures["mean_bf_iou"])


def _full(case: Case, report: Report) -> None:
    meter = DENetFullMeter(int(case["num_classes"]))
    meter.update(case.tensor("pred"), case.tensor("label"))
    _equal(report, case, "out_confusion", meter.histogram)
    _percent(report, case, "out_iou", list(meter.class_iou().values()))
    _percent(report, case, "out_miou", meter.compute()["miou"])
    if "subclasses" in case:
        mean = meter.subclass_mean(case["subclasses"].tolist())
        _percent(report, case, "out_subclass_mean", mean)


def _protocols(case: Case, report: Report) -> None:
    labels = case["full_ssp_hist"].shape[0]
    size = (labels - 1) // 4
    fold = list(range(size * int(case["fold"]) + 1, size * (int(case["fold"]) + 1) + 1))
    for name in (key.removeprefix("gt_") for key in case.arrays if key.startswith("gt_")):
        episodes = [case.tensor(f"{kind}_{name}") for kind in ("pred", "gt", "cls")]
        _hsnet(case, report, name, fold, episodes)
        _pfenet(case, report, name, fold, episodes)
        _panet(case, report, name, fold, episodes)
        meter = ConfusionMeter(labels)
        meter.update(*episodes)
        _equal(report, case, f"{name}_ssp_hist", meter.histogram)
        _percent(report, case, f"{name}_ssp_miou", meter.compute()["miou"])
    if "nway_gt" in case:
        ways = PANetMeter(fold)
        ways.update(*(case.tensor(f"nway_{kind}") for kind in ("pred", "gt", "labels")))
        figures = ways.compute()
        _percent(report, case, "nway_class_iou", list(ways.class_iou().values()))
        _percent(report, case, "nway_miou", figures["miou"])
        sides = [figures["background_iou"], figures["foreground_iou"]]
        _percent(report, case, "nway_fb_class_iou", sides)
        _percent(report, case, "nway_fbiou", figures["fb_iou"])


def _hsnet(case: Case, report: Report, name: str, fold: list[int], episodes: list[Tensor]) -> None:
    prediction, truth, classes = episodes
    meter = FoldMeter([number - 1 for number in fold])  # HSNet numbers the classes from 0
    meter.update(prediction, truth, classes - 1)
    for key, ours in (("inter", meter.intersection), ("union", meter.union)):
        wanted = case[f"{name}_hsnet_{key}"]
        _equal(report, case, f"{name}_hsnet_{key}", _widened(ours.T, wanted.shape[1]))
    figures = meter.compute()
    report.compare(f"{name}_hsnet_miou", _tensor(figures["miou"]), case[f"{name}_hsnet_miou"])
    report.compare(f"{name}_hsnet_fbiou", _tensor(figures["fb_iou"]), case[f"{name}_hsnet_fbiou"])
    # The file has fractions here beside percentages.
    _percent(report, case, f"{name}_hsnet_class_iou", list(meter.class_iou().values()))


def _pfenet(case: Case, report: Report, name: str, fold: list[int], episodes: list[Tensor]) -> None:
    meter = PFENetMeter(fold)
    meter.update(*episodes)
    figures = meter.compute()
    iou = list(meter.class_iou().values())
    _percent(report, case, f"{name}_pfenet_slot_iou", iou[1:] + iou[:1])  # its rotated lines
    for key, ours in (
        ("miou", "miou"),
        ("fbiou", "fb_iou"),
        ("macc", "mean_accuracy"),
        ("allacc", "accuracy"),
    ):
        _percent(report, case, f"{name}_pfenet_{key}", figures[ours])


def _panet(case: Case, report: Report, name: str, fold: list[int], episodes: list[Tensor]) -> None:
    runs = int(case[f"{name}_panet_runs"])
    meter = PANetMeter(fold, runs=runs)
    for run, parts in enumerate(zip(*(part.chunk(runs) for part in episodes), strict=True)):
        meter.update(*parts, run=run)
    figures = meter.compute()
    _percent(report, case, f"{name}_panet_class_iou", list(meter.class_iou().values()))
    _percent(report, case, f"{name}_panet_class_iou_std", list(meter.class_iou_std().values()))
    for suffix in ("", "_std"):
        sides = [figures[f"{side}_iou{suffix}"] for side in ("background", "foreground")]
        _percent(report, case, f"{name}_panet_fb_class_iou{suffix}", sides)
        _percent(report, case, f"{name}_panet_miou{suffix}", figures[f"miou{suffix}"])
        _percent(report, case, f"{name}_panet_fbiou{suffix}", figures[f"fb_iou{suffix}"])


def _tensor(values: float | list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _widened(counts: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(counts, (0, columns - counts.shape[1]))


def _equal(report: Report, case: Case, key: str, ours: Tensor) -> None:
    """Counts are whole numbers: nothing is rounded."""
    report.compare(key, ours, case[key], tolerance=0)


def _percent(report: Report, case: Case, key: str, ours: float | list[float]) -> None:
    """Ours in percent, the file's a fraction; NaN where the file has it, and only there."""
    values, wanted = _tensor(ours) / 100, np.asarray(case[key], dtype=np.float64)
    assert np.array_equal(values.isnan().numpy(), np.isnan(wanted)), f"{key}: other classes"
    report.compare(key, values.nan_to_num(), np.nan_to_num(wanted))
