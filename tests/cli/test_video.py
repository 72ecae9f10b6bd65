"""`fastfss video` and `fastfss eval --protocol davis`, as programs and in this process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfss.cli import main
from tests.protocols.test_davis import write_davis
from tests.video.clips import HEIGHT, WIDTH, clip

Run = Callable[..., tuple[int, str, str]]
MODEL = ("--backbone", "resnet18", "--layers", "layer1", "--size", "64")


@pytest.fixture
def frames(tmp_path: Path) -> Path:
    """A folder of six frames, and the masks of the first beside it."""
    pictures, masks = clip(6, 2)
    (tmp_path / "clip").mkdir()
    for n, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / "clip" / f"{n:05d}.png")
    Image.fromarray(masks[0]).save(tmp_path / "first.png")
    return tmp_path / "clip"


@pytest.fixture
def run(frames: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    def in_this_process(*options: object) -> tuple[int, str, str]:
        capfd.readouterr()
        arguments = ["video", frames, "--out", frames.parent / "out", *MODEL, *options]
        code = main([str(one) for one in arguments])
        return (code, *capfd.readouterr())

    return in_this_process


def program(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastfss", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_masks_in_and_every_format_out(frames: Path) -> None:
    out = frames.parent / "out"
    done = program(
        *("video", frames, "--mask", frames.parent / "first.png", "--out", out, *MODEL),
        *("--format", "davis,overlay,coco,ytvis,cvat,cutout,csv,binary"),
    )
    assert done.returncode == 0, done.stderr
    assert "6 of 6 frames, 5 now" in done.stdout
    assert "random weights" in done.stderr and "Traceback" not in done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        *(
            "binary",
            "coco.json",
            "cutouts",
            "cvat.xml",
            "masks",
            "objects.csv",
            "overlay.mp4",
            "session",
        ),
        "ytvis.json",
    ]
    with (
        Image.open(out / "masks" / "00000.png") as image,
        Image.open(frames.parent / "first.png") as first,
    ):
        assert image.mode == "P" and np.array_equal(np.array(image), np.array(first))
    again = program(*("video", frames, "--mask", frames.parent / "first.png", "--out", out, *MODEL))
    assert again.returncode == 0, again.stderr
    assert "6 of 6 frames, 0 now" in again.stdout


def test_clicks_from_the_middle_go_both_ways(run: Run, frames: Path) -> None:
    code, out, _ = run("--click", "27,20", "-80,55", "--frame", 3, "--format", "davis")
    assert code == 0 and "6 of 6 frames, 5 now" in out
    events = (frames.parent / "out" / "session" / "events.jsonl").read_text().splitlines()
    kinds = [json.loads(line)["kind"] for line in events]
    assert kinds == ["object", "annotate", "propagate", "stop", "propagate", "stop"]


def test_a_run_that_was_cut_off_goes_on(run: Run, frames: Path) -> None:
    options = ("--mask", frames.parent / "first.png", "--format", "davis")
    assert run(*options)[0] == 0
    # As a kill leaves it: the propagation's end is not noted, two frames are missing.
    folder = frames.parent / "out" / "session"
    events = (folder / "events.jsonl").read_text().splitlines()
    (folder / "events.jsonl").write_text("\n".join(events[:-1]) + "\n")
    results = (folder / "results.jsonl").read_text().splitlines()
    (folder / "results.jsonl").write_text("\n".join(results[:4]) + "\n")
    code, out, _ = run(*options)
    assert code == 0 and "6 of 6 frames, 2 now" in out
    assert "6 of 6 frames, 0 now" in run(*options)[1]
    assert len(list((frames.parent / "out" / "masks").iterdir())) == 6


def test_another_command_needs_another_folder(run: Run, frames: Path) -> None:
    assert run("--click", "18,20", "--format", "csv")[0] == 0
    code, _, err = run("--click", "19,20", "--format", "csv")
    assert code == 2 and "--out: expected the folder of this same command, or --overwrite" in err
    assert run("--click", "19,20", "--format", "csv", "--overwrite")[0] == 0


def test_an_example_from_another_image(run: Run, frames: Path) -> None:
    picture, mask = clip(1, seed=8)
    Image.fromarray(picture[0]).save(frames.parent / "other.png")
    Image.fromarray(mask[0] * 255).save(frames.parent / "other_mask.png")
    code, out, _ = run(
        "--support",
        frames.parent / "other.png",
        frames.parent / "other_mask.png",
        "--format",
        "csv",
    )
    assert code == 0 and "6 of 6 frames" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "expected --mask, --click"),
        (["--mask", "first.png", "--click", "1,1"], "got both"),
        (["--mask", "rgb.png"], "rgb.png': expected"),
        (["--mask", "small.png"], "60 rows x 90 columns"),
        (["--mask", "absent.png"], "absent.png"),
        (["--click", "500,1"], "inside of the image"),
        (["--click", "1,1", "--frame", "6"], "--frame"),
        (["--click", "1,1", "--last", "9"], "--frame: expected --first"),
        (["--click", "1,1", "--direction", "up"], "--direction: expected one of"),
        (["--click", "1,1", "--format", "gif"], "--format: expected davis"),
        (["--click", "1,1", "--refinement", "sharp"], "--refinement: expected one of none"),
        (["--click", "1,1", "--weights", "absent.pth"], "absent.pth"),
        (["--click", "1,1", "--method", "sspp"], "method: expected one of"),
    ],
    ids=lambda one: " ".join(one[-2:]) if isinstance(one, list) else "",
)
def test_bad_input_is_one_clear_line(
    run: Run,
    frames: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(frames.parent)
    generator = np.random.default_rng(0)
    Image.fromarray(generator.integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)).save("rgb.png")
    Image.fromarray(np.ones((5, 5), np.uint8)).save("small.png")
    code, _, err = run(*options)
    assert code == 2
    assert message in " ".join(err.split())
    assert not (frames.parent / "out" / "masks").exists()


def test_davis_is_evaluated(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_davis(tmp_path, {"a": 5, "b": 4})
    common = ["eval", "--protocol", "davis", "--data", tmp_path, "--part", "all", *MODEL]
    common += ["--method", "propagation", "--out", tmp_path / "out"]
    assert main([str(one) for one in common]) == 0
    printed = capfd.readouterr().out
    assert "J&F" in printed and "mean" in printed
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(found["sequences"]) == {"a", "b"}
    assert len(found["objects"]) == 4
    assert found["figures"]["J&F"] == pytest.approx(
        (found["figures"]["J"] + found["figures"]["F"]) / 2
    )
    assert found["set"] == {"kind": "davis2017", "part": "all", "sequences": 2}
    assert main([str(one) for one in [*common, "--set", "pascal"]]) == 2
    assert "--set: expected one of davis2016, davis2017" in " ".join(capfd.readouterr().err.split())
