"""The shards of `fastfss label`: there whole, once, or not at all, whatever dies."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from fastfss.cli.label_folder import LabelFolder
from fastfss.cli.label_images import find_label_images
from fastfss.cli.label_shard import REQUEUES, Outcome
from fastfss.cli.label_workers import Watch, run_here
from tests.cli.conftest import draw
from tests.cli.label_jobs import FakeJob

IMAGES = 8


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight pictures in two folders; their widths, 40 to 47, tell them apart."""
    for number in range(IMAGES):
        path = tmp_path / "photos" / "ab"[number % 2] / f"{number}.png"
        draw(path, seed=number, width=40 + number)
    return tmp_path / "photos"


def folder_of(out: Path, photos: Path, formats: Sequence[str], **options: object) -> LabelFolder:
    settings = {"formats": list(formats)}
    images = find_label_images([str(photos)])
    return LabelFolder(out, images, settings, **{"shard_size": 4, "workers": 1, **options})


def watch(ready=lambda _: None, images=lambda _: None, done=lambda _: None, died=lambda _: None):
    return Watch(ready, images, done, died)


def labelled(job: FakeJob, photos: Path, workers: int = 1) -> tuple[list[Outcome], list[str], int]:
    """Run a whole job; return what became of the shards, who died, and the progress."""
    outcomes: list[Outcome] = []
    deaths: list[str] = []
    steps: list[int] = []
    with folder_of(job.out, photos, job.formats) as folder:
        told = watch(lambda _: folder.begin(), steps.append, outcomes.append, deaths.append)
        run_here(job, ["cpu"] * workers, folder.pending(), told)
        folder.report()
        folder.finish(["bright"])
    return outcomes, deaths, sum(steps)


def label_here(job: FakeJob, folder: LabelFolder) -> list[Outcome]:
    """Label what is pending in this process."""
    folder.begin()
    label = job.start("cpu")
    return [label(shard, lambda: None) for shard in folder.pending()]


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def job_of(tmp_path: Path, name: str, **options: object) -> FakeJob:
    return FakeJob(tmp_path / name, tmp_path / f"{name}.tried", **options)


def test_killed_worker_loses_nothing_and_repeats_nothing(photos, tmp_path):
    whole = job_of(tmp_path, "whole")
    with folder_of(whole.out, photos, whole.formats) as folder:
        label_here(whole, folder)
        folder.report()
        folder.finish(["bright"])
    cut_off = job_of(tmp_path, "cut-off", die_at=44, deaths=1)
    outcomes, deaths, steps = labelled(cut_off, photos, workers=2)
    assert len(deaths) == 1
    assert deaths[0].startswith("a worker died over shard 00000")
    assert deaths[0].endswith("(signal 9)")
    assert sorted(outcome.number for outcome in outcomes) == [0, 1]
    assert (sum(outcome.labelled for outcome in outcomes), steps) == (IMAGES, IMAGES)
    assert contents(cut_off.out) == contents(whole.out)
    images = json.loads((cut_off.out / "annotations.json").read_text())["images"]
    assert [image["id"] for image in images] == list(range(1, IMAGES + 1))


def test_image_that_kills_every_worker_is_listed_and_costs_itself_only(photos, tmp_path):
    job = job_of(tmp_path, "deadly", die_at=44, deaths=99)
    outcomes, deaths, steps = labelled(job, photos)
    assert len(deaths) == 1 + REQUEUES
    assert job.tried.read_text().split().count("44") == 1 + REQUEUES
    assert (sum(one.labelled for one in outcomes), sum(one.failed for one in outcomes)) == (7, 1)
    assert steps == IMAGES
    (line,) = (job.out / "failed.jsonl").read_text().splitlines()
    assert json.loads(line) == {
        "id": 3,
        "file": "a/4.png",
        "error": "the process that labelled it was killed, again and again",
    }
    assert len(list((job.out / "masks").rglob("*.png"))) == IMAGES - 1


@pytest.mark.parametrize(
    ("on_start", "kind", "message"),
    [
        ("die", ChildProcessError, "a worker died before it was ready"),
        ("task: no", ValueError, "task: no"),
    ],
)
def test_workers_that_cannot_start_end_the_run_before_anything_is_written(
    photos, tmp_path, on_start, kind, message
):
    job = job_of(tmp_path, "out", on_start=on_start)
    with pytest.raises(kind, match=message):
        labelled(job, photos)
    assert not list(job.out.iterdir())


def test_error_in_a_shard_leaves_none_of_it(photos, tmp_path, monkeypatch):
    job = job_of(tmp_path, "out")
    with folder_of(job.out, photos, job.formats) as folder:
        folder.begin()
        monkeypatch.setattr("fastfss.result.Result.save_mask", _full_disk)
        with pytest.raises(OSError, match="full"):
            label_here(job, folder)
        assert not list((job.out / "shards").iterdir())
        monkeypatch.undo()
        label_here(job, folder)
        assert not folder.pending()


def _full_disk(*_: object) -> None:
    raise OSError("the disk is full")


def test_second_one_to_finish_a_shard_changes_nothing(photos, tmp_path):
    job = job_of(tmp_path, "out")
    with folder_of(job.out, photos, job.formats) as folder:
        folder.begin()
        label = job.start("cpu")
        shard = folder.pending()[0]
        before: dict[str, bytes] = {}

        def overtake() -> None:
            if not before:
                before["begun"] = b""
                label(shard, lambda: None)
                before.update(contents(job.out / "shards"))

        assert label(shard, overtake).labelled == len(shard.images)
        del before["begun"]
        assert contents(job.out / "shards") == before
        assert not list((job.out / ".work").iterdir())
        # Once it is there, it is not even tried.
        tried = job.tried.read_text()
        assert label(shard, lambda: None) == Outcome(0, 4, 0)
        assert job.tried.read_text() == tried


def test_leftover_of_another_run_cannot_be_published(photos, tmp_path):
    job = job_of(tmp_path, "out")
    with folder_of(job.out, photos, job.formats) as folder:
        folder.begin()
        shard = folder.pending()[0]
        with pytest.raises(FileNotFoundError):
            # A new run begins while a process of the old one is at work.
            job.start("cpu")(shard, folder.begin)
        assert not list((job.out / "shards").iterdir())


def test_results_are_put_together_again_after_a_kill_in_it(photos, tmp_path, monkeypatch):
    job = job_of(tmp_path, "out")
    with folder_of(job.out, photos, job.formats) as folder:
        label_here(job, folder)
        moved = []

        def stop(self: Path, target: Path) -> Path:
            moved.append(target)
            if len(moved) == 3:
                raise KeyboardInterrupt
            return replace_file(self, target)

        replace_file = Path.replace
        monkeypatch.setattr(Path, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            folder.finish(["bright"])
        monkeypatch.undo()
        assert not (job.out / "annotations.json").exists()
    with folder_of(job.out, photos, job.formats) as folder:
        assert not folder.pending()
        folder.finish(["bright"])
        done = contents(job.out)
        folder.finish(["bright"])
        assert contents(job.out) == done
    assert len(list((job.out / "masks").rglob("*.png"))) == IMAGES


def test_other_images_are_refused_and_named(photos, tmp_path):
    job = job_of(tmp_path, "out")
    with folder_of(job.out, photos, job.formats) as folder:
        label_here(job, folder)
    (photos / "b" / "1.png").rename(photos / "b" / "11.png")
    with pytest.raises(ValueError, match=r"image 5 was 'b/1\.png', now 'b/11\.png'"):
        folder_of(job.out, photos, job.formats)
    (photos / "b" / "11.png").unlink()
    with pytest.raises(ValueError, match="images was 8, now 7; image 5 was"):
        folder_of(job.out, photos, job.formats)
    with folder_of(job.out, photos, job.formats, overwrite=True) as folder:
        label_here(replace(job), folder)
        assert sum(len(shard.images) for shard in folder.shards()) == 7


def test_shards_suit_the_workers_and_stay_for_the_next_run(photos, tmp_path):
    with folder_of(tmp_path / "out", photos, (), shard_size=None, workers=2) as folder:
        assert folder.shard_size == 1
    with folder_of(tmp_path / "out", photos, (), shard_size=3) as folder:
        label_here(job_of(tmp_path, "out"), folder)
        assert [len(shard.images) for shard in folder.shards()] == [3, 3, 2]
    with folder_of(tmp_path / "out", photos, (), shard_size=None, workers=8) as folder:
        assert folder.shard_size == 3
    with pytest.raises(ValueError, match="shard_size was 3, now 4"):
        folder_of(tmp_path / "out", photos, ())


def test_run_that_came_to_nothing_binds_nobody(photos, tmp_path):
    with folder_of(tmp_path / "out", photos, ("masks",), shard_size=3) as folder:
        folder.begin()
    job = job_of(tmp_path, "out", formats=("coco",))
    with folder_of(job.out, photos, job.formats, shard_size=None) as folder:
        assert folder.shard_size == 1
        label_here(job, folder)
        folder.finish(["bright"])
    assert json.loads((job.out / "label.json").read_text())["settings"]["formats"] == ["coco"]


def test_removed_shard_is_done_anew_and_results_without_shards_still_bind(photos, tmp_path):
    job = job_of(tmp_path, "out")
    with folder_of(job.out, photos, job.formats) as folder:
        label_here(job, folder)
        folder.finish(["bright"])
    done = contents(job.out)
    shutil.rmtree(job.out / "shards" / "000001")
    (job.out / "masks" / "b" / "7.png").unlink()
    with folder_of(job.out, photos, job.formats) as folder:
        assert [shard.number for shard in folder.pending()] == [1]
        label_here(job, folder)
        folder.finish(["bright"])
    assert contents(job.out) == done
    shutil.rmtree(job.out / "shards")
    with pytest.raises(ValueError, match="formats was masks,coco, now masks"):
        folder_of(job.out, photos, ("masks",))


def test_second_run_at_the_same_time_and_foreign_files_are_refused(photos, tmp_path):
    with (
        folder_of(tmp_path / "out", photos, ()),
        pytest.raises(BlockingIOError, match="another fastfss label is writing there"),
    ):
        folder_of(tmp_path / "out", photos, ())
    (tmp_path / "mine" / "masks").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="holds 'masks', which no job wrote"):
        folder_of(tmp_path / "mine", photos, (), overwrite=True)
