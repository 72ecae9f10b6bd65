from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fastfss import Task
from fastfss.weights import CheckpointError, save_checkpoint

SETTINGS = {"encoder": "resnet18", "layers": "layer2", "weights": "abc"}


def task(shots: int = 2, seed: int = 0, **changes: object) -> Task:
    generator = torch.Generator().manual_seed(seed)
    tensors = {
        key: torch.randn(1, shots, 8, generator=generator) for key in ("foreground", "background")
    }
    fields = {"method": "ssp", "tensors": tensors, "name": "cat", "settings": SETTINGS, **changes}
    return Task(**fields)  # type: ignore[arg-type]


def test_a_saved_task_comes_back_equal(tmp_path: Path) -> None:
    saved = task()
    saved.save(tmp_path / "cat.safetensors")
    loaded = Task.load(tmp_path / "cat.safetensors")
    assert (loaded.method, loaded.name, loaded.settings) == ("ssp", "cat", SETTINGS)
    assert loaded.tensors.keys() == saved.tensors.keys()
    for key, tensor in saved.tensors.items():
        assert torch.equal(loaded.tensors[key], tensor)


def test_a_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "cat.safetensors"
    task(seed=1).save(path)
    before = path.read_bytes()

    def full_disk(*_: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        task(seed=2).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["cat.safetensors"]


def test_merging_puts_the_shots_together_and_select_takes_them_apart() -> None:
    first, second = task(2, seed=1), task(3, seed=2)
    merged = first.merge(second)
    assert merged.shots == 5
    assert torch.equal(merged.select([0, 1]).tensors["foreground"], first.tensors["foreground"])
    assert torch.equal(merged.select([2, 3, 4]).tensors["background"], second.tensors["background"])
    without = merged.remove(-1)
    assert torch.equal(without.tensors["foreground"], merged.tensors["foreground"][:, :4])


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (task(method="mlc"), "others: expected a task of method 'ssp', got one of 'mlc'"),
        (
            task(settings={**SETTINGS, "weights": "xyz"}),
            "weights 'abc', got one with 'xyz'",
        ),
        (task(tensors={k: torch.zeros(2, 1, 8) for k in ("foreground", "background")}), "batch"),
        (
            task(tensors={"foreground": torch.zeros(1, 1, 8)}),
            "tasks that hold background, foreground, got one that holds foreground",
        ),
    ],
    ids=["method", "weights", "batch", "tensors"],
)
def test_tasks_that_do_not_belong_together_are_refused(other: Task, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task().merge(other)


@pytest.mark.parametrize("shots", [[], [2], [-3]])
def test_selecting_shots_that_are_not_there_is_refused(shots: list[int]) -> None:
    with pytest.raises(ValueError, match="shots: expected at least one of 0 to 1"):
        task(2).select(shots)


def test_the_only_shot_cannot_be_removed() -> None:
    with pytest.raises(ValueError, match="shot: expected"):
        task(1).remove(0)


def test_moving_changes_the_dtype_of_all_tensors() -> None:
    assert {t.dtype for t in task().to(dtype=torch.bfloat16).tensors.values()} == {torch.bfloat16}


@pytest.mark.parametrize(
    "tensors",
    [{}, {"a": torch.zeros(3)}, {"a": torch.zeros(1, 2, 4), "b": torch.zeros(1, 3, 4)}],
    ids=["none", "one dimension", "different shots"],
)
def test_tensors_without_common_shots_are_refused(tensors: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="tensors: expected at least one tensor, all"):
        Task("ssp", tensors)


def test_other_files_are_refused_as_tasks(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        Task.load(tmp_path / "none.safetensors")
    save_checkpoint(tmp_path / "weights.safetensors", {"w": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"a task file written by Task\.save"):
        Task.load(tmp_path / "weights.safetensors")
    whole = tmp_path / "cat.safetensors"
    task().save(whole)
    whole.write_bytes(whole.read_bytes()[:-20])
    with pytest.raises(CheckpointError, match="truncated"):
        Task.load(whole)
