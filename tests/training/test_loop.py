from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fastfss import create_model
from fastfss.encoders import Encoder
from fastfss.errors import CheckpointError
from fastfss.training import Recipe, train
from fastfss.training.loop import _Run
from fastfss.training.processes import Processes
from tests.training.shapes import tiny_recipe

SLOW = pytest.mark.slow

# Dropout, an average, mixed precision's scaler and accumulated parts: all that has a state.
EVERYTHING: dict[str, dict[str, Any]] = {
    "model": {"method": "canet", "layers": ["layer2", "layer3"], "options": {"refine_time": 1}},
    "run": {"steps": 5, "batch": 2, "accumulate": 2, "ema": 0.9},
    "optimiser": {"lr": 0.01, "clip": 1.0, "repeat_every": 2},
    "schedule": {"kind": "poly"},
    "validation": {"every": 2, "episodes": 2, "minimum": 20},
    "checkpoints": {"every": 2, "keep": 5},
    "log": {"every": 3},  # a checkpoint in the middle of what a row sums up
}


def run(recipe: Recipe, out: Path, **options: Any) -> dict[str, Tensor]:
    result = train(recipe, out, device="cpu", progress="off", **options)
    return load_file(result.weights)


def rows(out: Path, kind: str) -> list[dict[str, Any]]:
    lines = (out / "log.jsonl").read_text().splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(
        torch.equal(first[key], second[key]) for key in first
    )


class Killed(BaseException):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Have the run end before its step is counted."""
    inner = _Run._step

    def stopping(self: _Run, *arguments: Any) -> Any:
        norm = inner(self, *arguments)
        if self.state.step == step:
            raise Killed
        return norm

    monkeypatch.setattr(_Run, "_step", stopping)


@pytest.mark.parametrize("step", [0, 2, 3, *(pytest.param(n, marks=SLOW) for n in (1, 4))])
def test_a_run_that_was_stopped_at_any_step_goes_on_to_the_same_weights(
    step: int, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_recipe(shapes, **EVERYTHING)
    whole = run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(Killed):
            run(recipe, tmp_path / "stopped")
    # Whatever was drawn in between must not matter.
    random.seed(step), np.random.seed(step), torch.manual_seed(step)
    assert equal(whole, run(recipe, tmp_path / "stopped", resume=True))
    for kind in ("train", "validation"):
        both = [rows(tmp_path / name, kind) for name in ("whole", "stopped")]
        times = ("time", "episodes_per_s")
        assert [{k: v for k, v in row.items() if k not in times} for row in both[0]] == [
            {k: v for k, v in row.items() if k not in times} for row in both[1]
        ]


# What a guided network's two recipes for a CPU do, and what its published ones.
REGIMES: dict[str, dict[str, Any]] = {
    "episodes, maps kept": {
        "data": {"sampler": "equal", "points": "random"},
        "optimiser": {"name": "adam", "groups": [{"pattern": "encoder.*", "lr": 0.0}]},
        "cache": {"maps": "fp16"},
    },
    "annotated queries, maps kept": {
        "data": {"sampler": "interactive", "points": "random", "folds": "none"},
        "optimiser": {"name": "adam", "groups": [{"pattern": "encoder.*", "lr": 0.0}]},
        "cache": {"maps": "fp16"},
    },
    "annotated queries": {
        "data": {"sampler": "interactive", "points": "random", "folds": "none"},
        "transform": {"kind": "native"},
        "run": {"steps": 5, "batch": 1},
        "optimiser": {"lr": 1e-4, "momentum": 0.99},
    },
}


@pytest.mark.parametrize("regime", REGIMES)
def test_both_regimes_of_guided_networks_go_on_to_the_same_weights(
    regime: str, shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {
        "run": {"steps": 5, "batch": 2},
        "schedule": {"kind": "cosine"},
        "validation": {"every": 2, "episodes": 2, "minimum": 20, "points": 2},
        **REGIMES[regime],
    }
    recipe = tiny_recipe(shapes, "guided-late", **settings)
    whole = run(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_at(patch, 3)
        with pytest.raises(Killed):
            run(recipe, tmp_path / "stopped")
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert equal(whole, run(recipe, tmp_path / "stopped", resume=True))
    measured = [[row["miou"] for row in rows(tmp_path / name, "validation")]
                for name in ("whole", "stopped")]  # fmt: skip
    assert measured[0] == measured[1] and len(measured[0]) == 3


def test_an_annotated_query_is_encoded_once(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = Encoder.forward
    monkeypatch.setattr(
        Encoder, "forward", lambda self, *a, **k: seen.append(len(a[0])) or forward(self, *a, **k)
    )
    data = {"sampler": "interactive", "points": 3, "folds": "none"}
    run(tiny_recipe(shapes, "guided-late", data=data, run={"steps": 2, "batch": 3}), tmp_path)
    assert seen == [3, 3]


def test_annotated_queries_are_learned_from(shapes: Path, tmp_path: Path) -> None:
    """From next to nothing to most of the shapes on images that were not learned from."""
    recipe = tiny_recipe(
        shapes,
        "guided-late",
        model={"layers": ["layer1"], "size": 40},
        data={"sampler": "interactive", "points": "random", "folds": "none"},
        transform={"size": 40},
        optimiser={"name": "adam", "lr": 3e-3},
        run={"steps": 60, "batch": 4},
        validation={"every": 60, "episodes": 24, "minimum": 20, "points": 5, "select": False},
    )
    first = tiny_recipe(shapes, "guided-late", **{
        "model": {"layers": ["layer1"], "size": 40}, "optimiser": {"lr": 1e-12},
        "data": {"sampler": "interactive", "points": "random", "folds": "none"},
        "transform": {"size": 40}, "run": {"steps": 1, "batch": 1},
        "validation": {"every": 1, "episodes": 24, "minimum": 20, "points": 5},
    })  # fmt: skip
    run(first, tmp_path / "first"), run(recipe, tmp_path / "last")
    before, after = (rows(tmp_path / n, "validation")[-1]["miou"] for n in ("first", "last"))
    assert after > before + 20, (before, after)


def test_loaders_and_global_seeds_change_nothing(shapes: Path, tmp_path: Path) -> None:
    found = []
    for workers in (0, 2):
        torch.manual_seed(workers)
        recipe = tiny_recipe(shapes, log={"workers": workers})
        found.append(run(recipe, tmp_path / str(workers)))
    assert equal(*found)


@pytest.mark.parametrize(
    "kind, resize", [("square", "torch"), ("square", "pillow"), ("crop", "torch")]
)
def test_decoded_images_change_nothing(
    kind: str, resize: str, shapes: Path, tmp_path: Path
) -> None:
    transform = {"kind": kind, "mask_resize": resize}
    found = [
        run(
            tiny_recipe(shapes, transform=transform, cache={"images_mib": mib}),
            tmp_path / str(mib),
        )
        for mib in (0, 1)
    ]
    assert equal(*found)


def test_another_seed_gives_other_weights(shapes: Path, tmp_path: Path) -> None:
    first, second = (
        run(tiny_recipe(shapes, run={"seed": seed}), tmp_path / str(seed)) for seed in (0, 1)
    )
    assert not equal(first, second)


def test_parts_of_a_batch_give_the_gradient_of_the_whole(shapes: Path, tmp_path: Path) -> None:
    # HSNet's loss is a mean over all pixels, so the mean over the parts is the mean over the batch.
    model = {"method": "hsnet", "encoder": "mobilenet_v2", "layers": []}
    common = {"model": model, "transform": {"size": 64}, "optimiser": {"lr": 0.1, "momentum": 0.0}}
    whole, parts = (
        run(
            tiny_recipe(shapes, **common, run={"steps": 1, "batch": 4, "accumulate": parts}),
            tmp_path / str(parts),
        )
        for parts in (1, 4)
    )
    changed = 0
    for key, value in whole.items():
        torch.testing.assert_close(parts[key], value, rtol=1e-4, atol=1e-5)
        changed += not torch.equal(parts[key], value)
    assert changed, "the parts were computed apart"


def test_the_average_lags_behind_the_weights(shapes: Path, tmp_path: Path) -> None:
    plain = run(tiny_recipe(shapes), tmp_path / "plain")
    averaged = run(tiny_recipe(shapes, run={"ema": 0.99}), tmp_path / "averaged")
    start = run(tiny_recipe(shapes, optimiser={"lr": 1e-12}), tmp_path / "start")
    key = "encoder.layer2.0.conv1.weight"
    moved = (plain[key] - start[key]).norm()
    assert 0 < (averaged[key] - start[key]).norm() < moved


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("method", ["ssp", "hsnet", "denet"])
def test_low_precision_trains_float32_weights(
    precision: str, method: str, shapes: Path, tmp_path: Path
) -> None:
    models: dict[str, dict[str, Any]] = {
        "ssp": {},
        "hsnet": {"encoder": "mobilenet_v2", "layers": []},
        "denet": {"layers": ["layer3"]},
    }
    labels = {"labels": "ids", "held_out": "ignored"} if method == "denet" else {}
    found = []
    for kind in ("fp32", precision):
        recipe = tiny_recipe(
            shapes, method, model=models[method], data=labels, transform={"size": 64},
            run={"steps": 2, "precision": kind}, log={"every": 1},
        )  # fmt: skip
        weights = run(recipe, tmp_path / kind)
        assert all(w.dtype == torch.float32 for w in weights.values() if w.is_floating_point())
        # Of the first step: float16's scaler skips some until it fits.
        found.append(rows(tmp_path / kind, "train")[0]["total"])
    # SSP's thresholds let other positions in.
    assert found[0] == pytest.approx(found[1], rel=0.05)
    assert found[0] != found[1]


def test_the_saved_model_is_the_trained_one(shapes: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shapes, validation={"every": 3, "episodes": 4, "minimum": 20})
    result = train(recipe, tmp_path, device="cpu", progress="off")
    assert result.best is not None
    for path in (result.weights, result.best):
        model = create_model("mlc", encoder="resnet18", layers=["layer2"], weights=path)
        saved = load_file(path)
        assert torch.equal(model.state_dict()["encoder.layer2.0.conv1.weight"],
                           saved["encoder.layer2.0.conv1.weight"])  # fmt: skip


def test_the_log_says_what_was_run(shapes: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shapes, run={"steps": 4, "batch": 4, "accumulate": 2})
    run(recipe, tmp_path)
    about = json.loads((tmp_path / "run.json").read_text())
    assert about["effective_batch"] == 4
    assert about["batch"] == "2 episodes x 1 processes x 2 parts"
    assert len(about["held_out_classes"]) == 2 and len(about["base_classes"]) == 6
    assert about["images_that_show_held_out_classes"] > 0
    assert about["held_out_pixels"] == "background"
    assert [row["step"] for row in rows(tmp_path, "train")] == [2, 4]
    assert all(row["total"] > 0 and row["lr"] == 0.01 for row in rows(tmp_path, "train"))


@pytest.mark.parametrize("progress", ["bar", "lines"])
def test_progress_is_shown_on_stderr_or_by_rich(
    progress: Any, shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validation = {"every": 6, "episodes": 2, "minimum": 20}
    recipe = tiny_recipe(shapes, validation=validation)
    train(recipe, tmp_path, device="cpu", progress=progress)
    shown = "".join(capsys.readouterr())
    assert "effective batch 2: 2 episodes x 1 processes x 1 parts; 6 steps" in shown
    assert "also show held-out classes, whose pixels are background" in shown
    assert "step 6/6  validation: miou" in shown
    assert ("step 4/6  train: total" in shown) == (progress == "lines")


def test_tensorboard_has_the_same_figures(shapes: Path, tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run(tiny_recipe(shapes, log={"tensorboard": True}), tmp_path)
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    found = [(one.step, one.value) for one in events.Scalars("train/total")]
    logged = [(row["step"], row["total"]) for row in rows(tmp_path, "train")]
    assert [step for step, _ in found] == [step for step, _ in logged] == [2, 4, 6]
    assert [value for _, value in found] == pytest.approx([value for _, value in logged])


def test_old_checkpoints_go(shapes: Path, tmp_path: Path) -> None:
    run(tiny_recipe(shapes, checkpoints={"every": 1, "keep": 2}), tmp_path)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005.pt", "step-00000006.pt"]


def test_a_folder_with_a_run_is_not_written_over(shapes: Path, tmp_path: Path) -> None:
    run(tiny_recipe(shapes), tmp_path)
    with pytest.raises(FileExistsError, match="--resume goes on"):
        run(tiny_recipe(shapes), tmp_path)


def test_a_checkpoint_of_another_recipe_is_refused(shapes: Path, tmp_path: Path) -> None:
    run(tiny_recipe(shapes), tmp_path)
    with pytest.raises(ValueError, match=r"optimiser\.lr: 0\.01 -> 0\.02"):
        run(tiny_recipe(shapes, optimiser={"lr": 0.02}), tmp_path, resume=True)


def test_a_checkpoint_of_other_data_is_refused(shapes: Path, tmp_path: Path) -> None:
    run(tiny_recipe(shapes), tmp_path / "run")
    copy = tmp_path / "copy"
    for file in shapes.rglob("*.*"):
        target = copy / file.relative_to(shapes)
        target.parent.mkdir(parents=True, exist_ok=True)
        if file.stem != "shape040":
            target.write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="data: expected the images of"):
        run(tiny_recipe(copy), tmp_path / "run", resume=True)


def test_more_steps_go_on_where_the_rate_is_constant(shapes: Path, tmp_path: Path) -> None:
    whole = run(tiny_recipe(shapes, run={"steps": 6}), tmp_path / "whole")
    run(tiny_recipe(shapes, run={"steps": 4}), tmp_path / "short")
    (tmp_path / "short" / "model.safetensors").unlink()
    assert equal(whole, run(tiny_recipe(shapes), tmp_path / "short", resume=True))


def test_a_damaged_checkpoint_is_named(shapes: Path, tmp_path: Path) -> None:
    run(tiny_recipe(shapes), tmp_path)
    newest = tmp_path / "checkpoints" / "step-00000006.pt"
    newest.write_bytes(newest.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"step-00000006\.pt: cannot be read"):
        run(tiny_recipe(shapes), tmp_path, resume=True)


def test_a_kill_while_writing_leaves_the_checkpoint_before(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(tiny_recipe(shapes), tmp_path / "whole")
    save = torch.save

    def half(state: dict[str, Any], file: BinaryIO) -> None:
        if state["step"] < 4:
            save(state, file)
            return
        file.write(b"half of a file")
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", half)
        with pytest.raises(Killed):
            run(tiny_recipe(shapes), tmp_path / "run")
    left = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert left == ["step-00000002.pt"]
    assert equal(whole, run(tiny_recipe(shapes), tmp_path / "run", resume=True))


def test_a_loss_that_is_not_finite_ends_the_run(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(
        FloatingPointError, match=r"step \d+: the loss is nan.*learning rate 1e\+20"
    ):
        run(tiny_recipe(shapes, optimiser={"lr": 1e20}), tmp_path)


def test_the_batch_must_fit_the_parts(shapes: Path) -> None:
    with pytest.raises(ValueError, match=r"run\.batch: expected a multiple of run\.accumulate, 2"):
        tiny_recipe(shapes, run={"batch": 3, "accumulate": 2})


def test_the_batch_must_fit_the_processes(shapes: Path, tmp_path: Path) -> None:
    recipe = tiny_recipe(shapes, run={"batch": 3})
    group = Processes(0, 2, torch.device("cpu"))
    with pytest.raises(ValueError, match=r"a multiple of 2, run\.accumulate x 2 processes, got 3"):
        _Run(recipe, tmp_path, group, None, None, False)


def test_weights_must_be_named(shapes: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r'model\.weights: expected what to start from: "imagenet"'
    ):
        run(tiny_recipe(shapes, model={"weights": ""}), tmp_path)


@pytest.mark.slow
def test_a_compiled_run_gives_the_same_losses(shapes: Path, tmp_path: Path) -> None:
    found = []
    for compile in (False, True):
        recipe = tiny_recipe(shapes, run={"compile": compile, "steps": 4})
        run(recipe, tmp_path / str(compile))
        found.append([row["total"] for row in rows(tmp_path / str(compile), "train")])
    assert found[0] == pytest.approx(found[1], rel=1e-3)
