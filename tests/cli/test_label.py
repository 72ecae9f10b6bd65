"""`fastfss label` as a user runs it: a real model, processes, kills."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastfss.cli import predict
from fastfss.cli.label_shard import LabelJob
from fastfss.cli.prediction_settings import PredictionSettings
from tests.cli.program import start_until
from tests.cli.test_label_images import write_tar
from tests.cli.test_label_shards import contents
from tests.cli.test_predict_program import make_support, random_weights, run_here, save_photo

PHOTOS = 12


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> tuple[object, ...]:
    """Twelve small photographs in two folders, a task of an untrained backbone; all but --out."""
    folder = tmp_path_factory.mktemp("label")
    names = ("astronaut.png", "coffee.png", "rocket.jpg", "camera.png", "coins.png")
    for number in range(PHOTOS):
        path = folder / "photos" / "ab"[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        save_photo(names[number % 5], path, 60 + number)
    model = ("--backbone", "resnet18", "--layers", "layer2", "--size", "64")
    model += ("--weights", random_weights(folder / "weights.safetensors"))
    for name in ("cat", "face"):
        support = make_support(folder, 90 if name == "cat" else 100)
        task = folder / f"{name}.safetensors"
        code = run_here(
            "predict", *model, *("--name", name), *("--support", *support), "--save-task", task
        )
        assert code == 0
    tasks = (folder / "cat.safetensors", folder / "face.safetensors")
    return ("label", *model, "--task", *tasks, "--images", folder / "photos", "--workers", 1)


@pytest.fixture(scope="module")
def whole(job: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an undisturbed run makes, in shards of two."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert run_here(*job, "--shard-size", 2, "--out", out) == 0
    return out


def photos_of(job: tuple[object, ...]) -> Path:
    folder = job[job.index("--images") + 1]
    assert isinstance(folder, Path)
    return folder


def children(process: int) -> list[int]:
    """The processes below one, at any depth (Linux)."""
    found = []
    for task in Path(f"/proc/{process}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def start_job(shards: int, out: Path, *arguments: object) -> subprocess.Popen[str]:
    """Start the program, and return when so many shards are done."""
    done = out / "shards"
    return start_until(lambda: len(list(done.glob("*"))) >= shards, *arguments, "--out", out)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_masks_mirror_the_folder_and_coco_says_the_same(job, whole):
    coco = pytest.importorskip("pycocotools.mask")
    listed = json.loads((whole / "annotations.json").read_text())
    assert listed["categories"] == [{"id": 1, "name": "cat"}, {"id": 2, "name": "face"}]
    names = sorted(path.relative_to(photos_of(job)) for path in photos_of(job).rglob("*.png"))
    assert [image["file_name"] for image in listed["images"]] == [str(name) for name in names]
    maps = {}
    for image in listed["images"]:
        labels = read_label_map(whole / "masks" / image["file_name"])
        assert labels.shape == (image["height"], image["width"])
        maps[image["id"]] = labels
    regions = {(one["image_id"], one["category_id"]): one for one in listed["annotations"]}
    wanted = {(image, way) for image, labels in maps.items() for way in np.unique(labels) if way}
    assert len(regions) == len(listed["annotations"]) > PHOTOS // 2
    assert regions.keys() == wanted
    for (image, way), region in regions.items():
        assert region["id"] == (image - 1) * 2 + way
        mask = coco.decode(region["segmentation"])
        np.testing.assert_array_equal(mask, maps[image] == way)
        assert region["area"] == mask.sum()
        assert region["bbox"] == list(coco.toBbox(region["segmentation"]))
        assert 0 < region["score"] <= 1


def read_label_map(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def test_same_command_again_does_nothing_and_other_settings_are_refused(job, whole, capfd):
    before = contents(whole)
    assert run_here(*job, "--out", whole) == 0
    assert capfd.readouterr().out == (
        f"12 images: 0 labelled (0 images/s), 12 done before, 0 failed -> {whole}\n"
    )
    assert run_here(*job, "--out", whole, "--no-refine", "--format", "masks") == 2
    assert capfd.readouterr().err == (
        f"error: --out '{whole}': made with other settings (refine was not given, now False; "
        "formats was masks,coco, now masks); choose another folder, or give --overwrite to begin "
        "anew\n"
    )
    assert contents(whole) == before


def test_killed_worker_changes_nothing(job, whole, tmp_path):
    if not Path("/proc/self/task").exists():
        pytest.skip("finds the worker in /proc")
    out = tmp_path / "out"
    process = start_job(2, out, *job, "--shard-size", 2)
    # The fork server's only child.
    (worker,) = [child for server in children(process.pid) for child in children(server)]
    os.kill(worker, signal.SIGKILL)
    stdout, stderr = process.communicate(timeout=100)
    assert process.returncode == 0
    assert "(signal 9); another one goes on\n" in stderr
    assert "12 images: 12 labelled" in stdout
    assert contents(out) == contents(whole)


def test_killed_job_goes_on_to_the_same_end(job, whole, tmp_path, capfd):
    out = tmp_path / "out"
    process = start_job(2, out, *job, "--shard-size", 2)
    workers = children(process.pid)
    process.kill()
    process.communicate()
    assert not (out / "annotations.json").exists()
    done = {path: path.stat().st_mtime_ns for path in (out / "shards").glob("*/records.jsonl")}
    # While the killed job's worker may still be at work.
    assert run_here(*job, "--out", out) == 0
    shown = re.search(r"12 images: (\d+) labelled .*, (\d+) done before", capfd.readouterr().out)
    assert shown is not None
    assert int(shown[1]) + int(shown[2]) == 12
    assert int(shown[2]) >= 2 * len(done)
    assert contents(out) == contents(whole)
    for path, changed in done.items():
        assert path.stat().st_mtime_ns == changed
    until = time.monotonic() + 20
    while any(Path(f"/proc/{worker}").exists() for worker in workers):
        assert time.monotonic() < until, "a worker outlives its job"
        time.sleep(0.05)


def test_interrupted_job_says_how_to_go_on(job, whole, tmp_path):
    out = tmp_path / "out"
    process = start_job(2, out, *job, "--shard-size", 2)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr == "interrupted; the same command goes on where this one stopped\n"
    assert "0 done before, 0 failed" in stdout
    assert run_here(*job, "--out", out) == 0
    assert contents(out) == contents(whole)


def test_unreadable_image_is_listed_and_webdataset_is_labelled_alike(job, whole, tmp_path, capfd):
    photos = photos_of(job)
    members = {str(path.relative_to(photos)): path.read_bytes() for path in photos.rglob("a/*.png")}
    members["a/01.png"] = b"no image"
    write_tar(tmp_path / "set.tar", members)
    where = job.index("--images")
    of_tar = (*job[:where], "--images", tmp_path / "set.tar", *job[where + 2 :])
    out = tmp_path / "out"
    for said in ("6 labelled", "0 labelled"):
        assert run_here(*of_tar, "--format", "masks", "--out", out) == 1
        shown = capfd.readouterr()
        assert f"7 images: {said}" in shown.out
        assert "1 failed" in shown.out
        assert shown.err == f"what failed and why: {out / 'failed.jsonl'}\n"
    (line,) = (out / "failed.jsonl").read_text().splitlines()
    failure = json.loads(line)
    assert (failure["id"], failure["file"]) == (2, "set/a/01.png")
    assert "not an image that Pillow can read" in failure["error"]
    masks = contents(out / "masks" / "set")
    assert masks == {
        name: content for name, content in contents(whole / "masks").items() if name in members
    }
    assert not (out / "annotations.json").exists()


@pytest.mark.parametrize(
    ("device", "backend", "wanted"),
    [
        ("cpu", "auto", "eager"),  # processes that measure would measure each other
        ("cpu", "openvino", "openvino"),
        ("cuda:0", "auto", "auto"),
    ],
)
def test_processes_on_a_cpu_do_not_choose_the_encoders_engine(
    tmp_path, monkeypatch, device, backend, wanted
):
    asked = []
    monkeypatch.setattr(predict, "build_model", lambda _, *given: asked.append(given))
    settings = PredictionSettings("ssp", None, None, None, None, {}, None, ())
    LabelJob(tmp_path, ("masks",), settings, backend, torch.get_num_threads()).start(device)
    assert asked == [(device, wanted)]


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["eager", "cuda-graph"])
def test_labels_on_a_gpu_are_those_of_the_cpu(job, whole, tmp_path, backend):
    assert run_here(*job, "--device", "cuda", "--backend", backend, "--out", tmp_path / "out") == 0
    equal = pixels = 0
    for image in json.loads((whole / "annotations.json").read_text())["images"]:
        name = f"masks/{image['file_name']}"
        alike = read_label_map(whole / name) == read_label_map(tmp_path / "out" / name)
        equal, pixels = equal + int(alike.sum()), pixels + alike.size
    assert equal >= 0.99 * pixels


def test_parquet_has_a_row_for_each_region(job, whole, tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    out = tmp_path / "out"
    assert run_here(*job, "--format", "parquet", "--shard-size", 5, "--out", out) == 0
    assert sorted(path.name for path in (out / "parquet").iterdir()) == [
        f"00000{number}.parquet" for number in range(3)
    ]
    rows = parquet.read_table(out / "parquet").to_pylist()
    listed = json.loads((whole / "annotations.json").read_text())["annotations"]
    assert len(rows) == len(listed)
    for row, region in zip(rows, listed, strict=True):
        assert (row["image_id"], row["way"]) == (region["image_id"], region["category_id"])
        assert (row["area"], row["bbox"]) == (region["area"], region["bbox"])
        assert row["counts"] == region["segmentation"]["counts"]
        assert row["score"] == pytest.approx(region["score"])
        assert row["name"] == ("cat", "face")[row["way"] - 1]
    assert not (out / "masks").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--format", "masks,yolo"), "--format: expected some of masks, coco, parquet, got 'yolo'"),
        (("--images", "absent"), "--images 'absent': no such file or folder"),
        (("--task", "absent.safetensors"), "absent.safetensors"),
        (("--layers", "layer3"), "task: expected a task with layers"),
        (("--device", "gpu7"), "--device: expected a device of this machine, got 'gpu7'"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_bad_choice_is_one_line_and_leaves_no_results(job, tmp_path, capfd, options, message):
    assert run_here(*job, "--out", tmp_path / "out", *options) == 2
    assert message in capfd.readouterr().err
    assert not list((tmp_path / "out").glob("*"))


def test_out_among_the_images_is_refused(job, capfd):
    assert run_here(*job, "--out", photos_of(job)) == 2
    assert "--out: expected a folder without --images" in capfd.readouterr().err


@pytest.mark.slow
def test_job_killed_again_and_again_comes_to_the_same_end(job, whole, tmp_path):
    out = tmp_path / "out"
    moments = random.Random(0)
    for shards in (0, 1, 2, 4):
        process = start_job(shards, out, *job, "--shard-size", 2)
        time.sleep(moments.uniform(0, 0.3) if shards else 3)
        victims = [process.pid, *children(process.pid)]
        moments.shuffle(victims)
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        process.communicate()
    assert run_here(*job, "--shard-size", 2, "--out", out) == 0
    assert contents(out) == contents(whole)


def test_missing_package_of_a_format_is_named_with_its_extra(job, tmp_path, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.delitem(sys.modules, "pyarrow.parquet", raising=False)
    assert run_here(*job, "--format", "parquet", "--out", tmp_path / "out") == 2
    assert capfd.readouterr().err == (
        'error: --format parquet needs pyarrow: pip install "fastfss[parquet]"\n'
    )
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_here(*job, "--cluster", "local", "--out", tmp_path / "out") == 2
    assert capfd.readouterr().err == 'error: --cluster needs ray: pip install "fastfss[ray]"\n'
