"""What all meters share, and those of SSP, HSNet, PFENet and PANet against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastfss.protocols import ConfusionMeter, DENetFullMeter, FoldMeter, PANetMeter, PFENetMeter
from tests.protocols.helpers import FOLD, KINDS, LABELS, Kind, episodes, same

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


def filled(kind: Kind, seeds: list[int]):
    meter = kind.make()
    for seed in seeds:
        meter.update(*kind.batch(seed))
    return meter


@each_kind
def test_batches_and_meters_add_up_in_any_order(kind):
    seeds = list(range(12))
    whole = filled(kind, seeds)
    assert whole.counts.any()
    parts = [filled(kind, seeds[9:]), filled(kind, seeds[:4][::-1]), filled(kind, seeds[4:9])]
    total = kind.make()
    for part in parts:
        total.merge(part)
    assert torch.equal(total.counts, whole.counts)
    assert same(total.compute(), whole.compute())
    assert same(total.class_iou(), whole.class_iou())


@each_kind
def test_a_batch_equals_its_episodes_alone(kind):
    prediction, truth, *rest = kind.batch(3)
    whole, alone = kind.make(), kind.make()
    whole.update(prediction, truth, *rest)
    for place in range(len(prediction)):
        one = [part[place : place + 1] if torch.is_tensor(part) else part for part in rest]
        alone.update(prediction[place : place + 1], truth[place : place + 1], *one)
    assert torch.equal(whole.counts, alone.counts)


@each_kind
def test_compute_can_be_called_in_between(kind):
    meter = filled(kind, [1, 2])
    first = meter.compute()
    assert same(first, meter.compute())
    meter.update(*kind.batch(4))
    assert same(meter.compute(), filled(kind, [1, 2, 4]).compute())


@each_kind
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32, torch.uint8], ids=str)
def test_every_kind_of_number_counts_alike(kind, dtype):
    prediction, truth, *rest = kind.batch(5)
    meter = kind.make()
    meter.update(prediction.to(dtype), truth.to(dtype), *rest)
    assert torch.equal(meter.counts, filled(kind, [5]).counts)


def test_bool_masks_count_as_0_and_1():
    prediction, truth, classes = episodes(1, void=False)
    numbers, bools = PFENetMeter(FOLD), PFENetMeter(FOLD)
    numbers.update(prediction, truth, classes[:, 0])
    bools.update(prediction.bool(), truth.bool(), classes[:, 0])
    assert torch.equal(numbers.counts, bools.counts)


@each_kind
def test_inputs_need_not_be_contiguous_and_stay_as_they_are(kind):
    prediction, truth, *rest = kind.batch(6)
    turned = [part.transpose(1, 2).contiguous().transpose(1, 2) for part in (prediction, truth)]
    meter, copies = kind.make(), [part.clone() for part in turned]
    meter.update(*turned, *rest)
    assert torch.equal(meter.counts, filled(kind, [6]).counts)
    assert all(torch.equal(part, copy) for part, copy in zip(turned, copies, strict=True))


@each_kind
def test_update_asks_a_device_for_nothing(kind):
    """On the meta device, whose tensors hold no values, any question of the host is an error."""
    meter = kind.make()
    for seed in (7, 9):
        prediction, truth, *rest = kind.batch(seed)
        meter.update(prediction.to("meta"), truth.to("meta"), *rest)
    assert meter.counts.device.type == "meta"


@pytest.mark.gpu
@each_kind
def test_on_a_gpu_the_counts_are_the_same_and_update_does_not_wait(kind):
    meter = filled(kind, [0])
    for seed in range(1, 6):
        prediction, truth, *rest = kind.batch(seed)
        prediction, truth = prediction.cuda(), truth.cuda()
        meter._move_to(prediction.device)
        torch.cuda.set_sync_debug_mode("error")
        try:
            meter.update(prediction, truth, *rest)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert meter.counts.is_cuda
    assert same(meter.compute(), filled(kind, list(range(6))).compute())


@pytest.mark.gpu
@each_kind
def test_on_a_gpu_stray_values_are_found_by_compute(kind):
    meter = filled(kind, [1])
    prediction, truth, *rest = kind.batch(2)
    prediction[0, 0, 0], truth[0, 0, 0] = 200, 0
    meter.update(prediction.cuda(), truth, *rest)
    with pytest.raises(ValueError, match="prediction and truth: expected labels only, got others"):
        meter.compute()


@each_kind
def test_in_inference_mode_and_outside(kind):
    meter = kind.make()
    with torch.inference_mode():
        meter.update(*[p.clone() if torch.is_tensor(p) else p for p in kind.batch(1)])
    meter.update(*kind.batch(2))
    assert same(meter.compute(), filled(kind, [1, 2]).compute())


@each_kind
def test_a_device_first_seen_in_inference_mode_can_be_used_outside(kind):
    meter = kind.make()
    prediction, truth, *rest = kind.batch(1)
    with torch.inference_mode():
        meter.update(prediction.to("meta"), truth.to("meta"), *rest)
    meter.update(prediction.to("meta"), truth.to("meta"), *rest)
    assert not meter.counts.is_inference()


@each_kind
def test_values_that_no_label_has_are_an_error_and_not_counted(kind):
    prediction, truth, *rest = kind.batch(2)
    prediction[0, 0, 0], truth[0, 0, 0] = 200, 0
    meter = kind.make()
    with pytest.raises(ValueError, match=r"prediction.*: expected .*, got other values in 1 pixel"):
        meter.update(prediction, truth, *rest)
    assert not meter.counts.any()


@pytest.mark.parametrize("name", ["ssp", "hsnet", "pfenet", "panet", "denet"])
def test_masks_of_0_and_255_are_an_error_where_they_are_predictions(name):
    prediction, truth, *rest = KINDS[name].batch(2)
    truth = truth.clamp(max=1)
    with pytest.raises(ValueError, match="got other values in"):
        KINDS[name].make().update(prediction * 255, truth, *rest)


@each_kind
def test_other_shapes_are_an_error(kind):
    prediction, truth, *rest = kind.batch(1)
    wide = torch.cat([truth, truth], 2)
    for pair in ((prediction, wide), (prediction[0], truth[0]), (prediction, truth[:1])):
        with pytest.raises(ValueError, match=r"prediction and truth: expected \(B, H, W\) both"):
            kind.make().update(*pair, *rest)


@each_kind
def test_other_classes_are_an_error(kind):
    prediction, truth, *rest = kind.batch(1)
    if not rest:
        return
    classes, *run = rest
    with pytest.raises(ValueError, match=r"classes: expected numbers of the \d+ in .* got \[25\]"):
        kind.make().update(prediction, truth, torch.full_like(classes, 25), *run)
    for wrong in (classes[:-1], classes[..., None, None], classes[:, None][:, :0]):
        with pytest.raises(ValueError, match=r"classes: expected \(7.*got \("):
            kind.make().update(prediction, truth, wrong, *run)


@pytest.mark.parametrize("meter", [FoldMeter, PFENetMeter, PANetMeter])
def test_a_class_outside_the_fold_is_an_error(meter):
    prediction, truth, classes = episodes(1)
    with pytest.raises(ValueError, match=r"classes: expected numbers of the 5 in 6..10, got \[5\]"):
        meter(FOLD).update(prediction, truth, torch.full_like(classes, 5)[:, 0])
    for wrong in ([], [6, 6], [-1, 2]):
        with pytest.raises(ValueError, match="classes: expected different class numbers"):
            meter(wrong)


def test_merging_what_differs_is_an_error():
    with pytest.raises(TypeError, match="other: expected FoldMeter, got PFENetMeter"):
        FoldMeter(FOLD).merge(PFENetMeter(FOLD))
    pairs = [
        (FoldMeter([1, 2, 3]), FoldMeter([1, 3])),
        (PANetMeter([1, 2], runs=2), PANetMeter([1, 2])),
        (ConfusionMeter(21), ConfusionMeter(81)),
        (DENetFullMeter(21), DENetFullMeter(21, skip_absent=True)),
    ]
    for left, right in pairs:
        with pytest.raises(ValueError, match=r"other: expected settings .*, got"):
            left.merge(right)


@pytest.mark.parametrize("labels", [-1, 0, 1])
@pytest.mark.parametrize("meter", [ConfusionMeter, DENetFullMeter])
def test_one_label_is_an_error(meter, labels):
    with pytest.raises(ValueError, match=rf"labels: expected at least 2, .*, got {labels}"):
        meter(labels)


def _reduce(rank: int, path: str) -> None:
    torch.distributed.init_process_group("gloo", f"file://{path}", world_size=2, rank=rank)
    for kind in KINDS.values():
        meter = filled(kind, [rank, rank + 2])
        meter.all_reduce()
        assert same(meter.compute(), filled(kind, [0, 1, 2, 3]).compute())
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_reduce_to_the_figures_of_one(tmp_path):
    torch.multiprocessing.spawn(_reduce, (str(tmp_path / "meet"),), nprocs=2)


# Plain loops over episodes and values, as the protocols are written down.


def sums_by_class(batches):
    """Per class and side: intersection, union, truth; 255 taken out."""
    sums = {number: np.zeros((2, 3)) for number in FOLD}
    for prediction, truth, classes in batches:
        for p, g, number in zip(prediction, truth, classes[:, 0].tolist(), strict=True):
            p, g = p[g != 255], g[g != 255]
            for side in (0, 1):
                both, either = (p == side) & (g == side), (p == side) | (g == side)
                sums[number][side] += [both.sum(), either.sum(), (g == side).sum()]
    return sums


def numpy_batches(seeds, ways=1):
    return [[part.numpy() for part in episodes(seed, ways=ways)] for seed in seeds]


@pytest.mark.parametrize("seeds", [range(3), range(20, 45)], ids=["few", "many"])
def test_hsnet_and_pfenet_equal_plain_loops(seeds):
    sums = np.stack(list(sums_by_class(numpy_batches(seeds)).values()))
    hsnet, pfenet = FoldMeter(FOLD), PFENetMeter(FOLD)
    for seed in seeds:
        prediction, truth, classes = episodes(seed)
        for meter in (hsnet, pfenet):
            meter.update(prediction, truth, classes[:, 0])
    total = sums.sum(0)
    iou = sums[:, 1, 0] / np.maximum(sums[:, 1, 1], 1)
    wanted = {
        "miou": 100 * iou.mean(),
        "fb_iou": 100 * (total[:, 0] / np.maximum(total[:, 1], 1)).mean(),
    }
    assert hsnet.compute() == pytest.approx(wanted, rel=1e-12)
    assert hsnet.class_iou() == pytest.approx(dict(zip(FOLD, 100 * iou, strict=True)), rel=1e-12)
    wanted = {
        "miou": 100 * (sums[:, 1, 0] / (sums[:, 1, 1] + 1e-10)).mean(),
        "fb_iou": 100 * (total[:, 0] / (total[:, 1] + 1e-10)).mean(),
        "mean_accuracy": 100 * (total[:, 0] / (total[:, 2] + 1e-10)).mean(),
        "accuracy": 100 * total[:, 0].sum() / (total[:, 2].sum() + 1e-10),
    }
    assert pfenet.compute() == pytest.approx(wanted, rel=1e-12)


def test_ssp_equals_plain_loops():
    meter, histogram = ConfusionMeter(LABELS), np.zeros((LABELS, LABELS))
    for seed in range(9):
        prediction, truth, classes = episodes(seed)
        meter.update(prediction, truth, classes[:, 0])
        for p, g, number in zip(prediction, truth, classes[:, 0].tolist(), strict=True):
            kept = (g != 255).numpy()
            p, g = p.numpy()[kept].astype(int) * number, g.numpy()[kept].astype(int) * number
            np.add.at(histogram, (g, p), 1)
    assert np.array_equal(meter.histogram.numpy(), histogram)
    union = histogram.sum(0) + histogram.sum(1) - np.diag(histogram)
    with np.errstate(invalid="ignore"):
        iou = 100 * (np.diag(histogram) / union)[1:]
    assert meter.compute()["miou"] == pytest.approx(np.nanmean(iou), rel=1e-12)
    assert list(meter.class_iou()) == FOLD[:4]


def panet_counts(batches):
    """(TP, FP, FN) by class, 0 the background; an absent label adds nothing."""
    counts = {number: np.zeros(3) for number in [0, *FOLD]}
    for prediction, truth, classes in batches:
        for p, g, ways in zip(prediction, truth, classes.tolist(), strict=True):
            for label, number in enumerate([0, *ways]):
                if not (g == label).any():
                    continue
                counts[number] += [
                    ((p == label) & (g == label)).sum(),
                    ((p == label) & (g != label) & (g != 255)).sum(),
                    ((g == label) & (p != label)).sum(),
                ]
    return counts


@pytest.mark.parametrize("ways", [1, 2, 3])
def test_panet_equals_plain_loops(ways):
    runs = [range(0, 8), range(8, 20), range(20, 23)]
    meter, by_class, sides = PANetMeter(FOLD, runs=3), [], []
    for run, seeds in enumerate(runs):
        for seed in seeds:
            meter.update(*episodes(seed, ways=ways), run=run)
        counts = panet_counts(numpy_batches(seeds, ways))
        with np.errstate(invalid="ignore"):
            by_class.append([counts[n][0] / counts[n].sum() for n in FOLD])
        objects = sum(counts[n] for n in FOLD)
        sides.append([c[0] / c.sum() for c in (counts[0], objects)])
    by_class, sides = 100 * np.array(by_class), 100 * np.array(sides)
    figures = meter.compute()
    wanted = {
        "miou": by_class.mean(1),
        "fb_iou": sides.mean(1),
        "background_iou": sides[:, 0],
        "foreground_iou": sides[:, 1],
    }
    for name, values in wanted.items():
        assert figures[name] == pytest.approx(values.mean(), rel=1e-12, nan_ok=True)
        assert figures[f"{name}_std"] == pytest.approx(values.std(), rel=1e-9, nan_ok=True)
    ours = list(meter.class_iou().values()), list(meter.class_iou_std().values())
    assert ours[0] == pytest.approx(by_class.mean(0).tolist(), rel=1e-12, nan_ok=True)
    assert ours[1] == pytest.approx(by_class.std(0).tolist(), rel=1e-9, nan_ok=True)


# The published quirks, one by one.


def maps(*rows: list[int]) -> torch.Tensor:
    return torch.tensor([[row] for row in rows])


def test_a_class_that_never_occurs_counts_0_is_left_out_or_makes_the_mean_nan():
    batch = maps([1, 1, 0]), maps([1, 0, 0]), torch.tensor([6])
    meters = FoldMeter(FOLD), PFENetMeter(FOLD), ConfusionMeter(LABELS), PANetMeter(FOLD)
    for meter in meters:
        meter.update(*batch)
    hsnet, pfenet, ssp, panet = (meter.compute()["miou"] for meter in meters)
    assert hsnet == pytest.approx(10) and pfenet == pytest.approx(10) and ssp == pytest.approx(50)
    assert np.isnan(panet)
    assert list(meters[2].class_iou()) == [6]
    assert np.isnan(meters[3].class_iou()[7]) and meters[3].class_iou()[6] == pytest.approx(50)


def test_panet_drops_false_positives_of_labels_that_the_truth_lacks():
    meter = PANetMeter([1])
    meter.update(maps([1, 1, 0, 0]), maps([0, 0, 0, 0]), torch.tensor([1]))
    assert meter.counts[0, 1].tolist() == [0, 0, 0]
    assert meter.counts[0, 0].tolist() == [2, 0, 2]


def test_panet_takes_one_way_for_another_as_an_error_of_the_foreground():
    meter = PANetMeter([1, 2])
    meter.update(maps([2, 2, 2, 0]), maps([1, 1, 2, 0]), torch.tensor([[1, 2]]))
    assert meter.class_iou() == {1: 0, 2: pytest.approx(100 / 3)}
    assert meter.compute()["foreground_iou"] == pytest.approx(20)  # TP 1, FP 2, FN 2


def test_ignored_pixels_add_nothing_whatever_is_predicted():
    for name in ("ssp", "hsnet", "pfenet", "panet"):
        left, right = KINDS[name].make(), KINDS[name].make()
        left.update(maps([1, 0, 1]), maps([1, 0, 255]), torch.tensor([6]))
        right.update(maps([1, 0, 0]), maps([1, 0, 255]), torch.tensor([6]))
        assert torch.equal(left.counts, right.counts) and left.counts.any()


def test_figures_accumulate_before_they_divide():
    meter = FoldMeter([0])
    meter.update(maps([1, 0, 0, 0]), maps([1, 0, 0, 0]), torch.tensor([0]))
    meter.update(maps([0, 0, 0, 0]), maps([1, 1, 1, 0]), torch.tensor([0]))
    assert meter.compute()["miou"] == pytest.approx(25)  # the mean of the images would be 50


def test_counts_beyond_float32_stay_exact():
    meter = FoldMeter([0])
    ones = torch.ones(1, 1, 1, dtype=torch.uint8)
    for _ in range(3):
        meter.update(ones.expand(4, 2900, 2900), ones.expand(4, 2900, 2900), torch.zeros(4))
    meter.update(ones, ones, torch.zeros(1))
    assert meter.intersection[0].tolist() == [0, 12 * 2900**2 + 1]


def test_nothing_seen_yet():
    assert np.isnan(ConfusionMeter(LABELS).compute()["miou"])
    assert FoldMeter(FOLD).compute() == {"miou": 0, "fb_iou": 0}
    assert all(np.isnan(v) for v in PANetMeter(FOLD).compute().values())


def test_runs_out_of_range_are_an_error():
    with pytest.raises(ValueError, match="runs: expected at least 1, got 0"):
        PANetMeter(FOLD, runs=0)
    for run in (-1, 2):
        with pytest.raises(ValueError, match=rf"run: expected 0..1, got {run}"):
            PANetMeter(FOLD, runs=2).update(*episodes(1), run=run)
