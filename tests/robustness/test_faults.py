"""Full disks, killed processes, files that cannot be read: nothing is lost, and it is said."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import fastfss
from fastfss.atomic import TEMPORARY_SUFFIX, atomic_path
from fastfss.engines import export
from fastfss.video import VideoSession
from tests.app.client import clip_folder, opened, page, serving
from tests.cli.conftest import Program
from tests.cli.conftest import program as program  # a fixture
from tests.robustness.faults import WRITERS, full_disk
from tests.robustness.fuzz import deadline
from tests.robustness.targets import CONTRACT, TARGETS
from tests.video.clips import session


def held(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# ---- A full disk


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_leaves_the_old_file(name: str, share: float, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    WRITERS[name](path, 1)
    before = held(tmp_path)
    with full_disk(int(len(before[name]) * share)), pytest.raises(OSError) as caught:
        WRITERS[name](path, 2)
    assert caught.value.errno == errno.EFBIG
    after = held(tmp_path)
    # A session's masks go before its events: those of events that are not there are left out.
    results = [] if "session" not in name else ["session/results.jsonl"]
    assert {k: v for k, v in after.items() if k not in results} == {
        k: v for k, v in before.items() if k not in results
    }
    meant = str(caught.value.filename)
    assert meant.startswith(str(tmp_path)) and not meant.endswith(TEMPORARY_SUFFIX)
    if "session" in name:
        assert session(4, workspace=path.parent).frames == (0, 1, 2, 3)
    WRITERS[name](path, 2)
    assert held(tmp_path).keys() >= before.keys()


def test_a_task_that_finds_no_room_is_one_line(program: Program, tmp_path: Path) -> None:
    task = tmp_path / "bright.safetensors"
    assert program.predict("--save-task", task).code == 0
    before = task.read_bytes()
    with full_disk(len(before) - 1):
        done = program.predict("--save-task", task, "--overwrite")
    assert done.code == 2 and "Traceback" not in done.err
    assert re.fullmatch(r"error: \S+: File too large\n", done.err)
    assert task.read_bytes() == before
    assert not list(tmp_path.rglob(f"*{TEMPORARY_SUFFIX}"))


def test_the_error_names_the_file_and_not_the_temporary_one(tmp_path: Path) -> None:
    path = tmp_path / "absent" / "a.txt"
    with pytest.raises(FileNotFoundError) as caught, atomic_path(path) as temporary:
        temporary.write_text("x")
    assert caught.value.filename == str(path)


def test_a_session_that_was_not_saved_is_said_and_saved_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = [True]
    save = VideoSession.save

    def saved(one: VideoSession, folder: str | Path) -> None:
        if full[0]:
            raise OSError(errno.ENOSPC, "No space left on device", str(folder))
        save(one, folder)

    monkeypatch.setattr(VideoSession, "save", saved)
    monkeypatch.setattr("fastfss.app.worker._SECONDS_TO_SAVE", 0.05)
    clips = clip_folder(tmp_path / "clip")
    with deadline(40), serving(tmp_path / "work", sources={"clip": clips}) as client:
        name = opened(client)
        with page(client, name) as one:
            one.ask("object.add", name="cow")
            while "not saved" not in str(said := one.until("error")):
                pass
            assert "No space left" in str(said)
            full[0] = False
            until = time.monotonic() + 20
            while not list((tmp_path / "work").rglob("events.jsonl")):
                assert time.monotonic() < until
                time.sleep(0.02)


def test_an_engine_that_cannot_take_its_place_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "engine"
    out.mkdir()
    (out / "manifest.json").write_text("old")
    rename = Path.rename

    def refused(path: Path, target: Path) -> Path:
        if path.name.endswith(TEMPORARY_SUFFIX):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", refused)
    with pytest.raises(OSError, match="Input/output"), export._folder(out, True) as folder:
        (folder / "manifest.json").write_text("new")
    assert held(tmp_path) == {"engine/manifest.json": b"old"}


# ---- A killed process


def test_a_process_killed_at_any_moment_leaves_whole_files(tmp_path: Path) -> None:
    """tests.robustness.killing writes all kinds of files, and is killed while it does."""
    root = str(Path(fastfss.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "tests.robustness.killing", str(tmp_path), "--kills", "25"],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        cwd=root, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "25 killed" in done.stdout


# ---- Files that cannot be read


@pytest.mark.parametrize("fault", ["folder", "loop", "input/output error", "missing"])
@pytest.mark.parametrize("name", TARGETS)
def test_what_cannot_be_read_is_named(name: str, fault: str, tmp_path: Path) -> None:
    target = TARGETS[name]
    path = target.make(tmp_path)
    path.unlink()
    if fault == "folder":
        path.mkdir()
    elif fault == "loop":
        path.symlink_to(path)
    elif fault == "input/output error":
        path.symlink_to("/proc/self/mem")  # whose first page nobody can read
    try:
        target.read(path)
    except CONTRACT as error:
        assert path.name in str(error) or str(path.parent) in str(error), repr(error)
    else:
        # Lists and journals that are not there are as if never written.
        assert fault in ("missing", "loop") and name in OPTIONAL


OPTIONAL = {"folder-list", "classes", "journal", "video-about", "video-results"}
