"""The output folder stays consistent whatever the moment at which a run is killed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedWriter, BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fastfss.cli.prediction_folder import PredictionFolder
from tests.cli.conftest import Program, draw


class Killed(BaseException):
    """Stands for the end of the process."""


@contextmanager
def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Let ``step`` changes of the file system happen and none after, as SIGKILL would.

    What is being written at that moment is left half written.
    """
    done = [0]

    def dying(function, tear):
        def act(target, *args, **kwargs):
            if done[0] >= step:
                if done[0] == step:
                    tear(target, *args)
                done[0] = step + 1
                raise Killed
            done[0] += 1
            return function(target, *args, **kwargs)

        return act

    def nothing(*_: object) -> None:
        pass

    def half_text(path: Path, text: str) -> None:
        original_open(path, "w").write(text[: len(text) // 2])

    def half_image(image: Image.Image, path: Path) -> None:
        whole = BytesIO()
        original_save(image, whole, format="PNG")
        original_open(path, "wb").write(whole.getvalue()[: whole.tell() // 2])

    def open_torn(path, mode="r", *args, **kwargs):
        file = original_open(path, mode, *args, **kwargs)
        if mode == "ab":
            file = TornFile(file)
            file.write = dying(file.write, lambda line: file.file.write(line[: len(line) // 2]))
        return file

    original_open, original_save = Path.open, Image.Image.save
    with monkeypatch.context() as patched:
        for name in ("replace", "unlink", "mkdir"):
            patched.setattr(Path, name, dying(getattr(Path, name), nothing))
        patched.setattr(Path, "write_text", dying(Path.write_text, half_text))
        patched.setattr(Image.Image, "save", dying(original_save, half_image))
        patched.setattr(Path, "open", open_torn)
        yield done


class TornFile:
    """A journal whose writing can be cut short."""

    def __init__(self, file: BufferedWriter) -> None:
        self.file = file

    def write(self, line: bytes) -> None:
        self.file.write(line)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()


def check_consistent(results: Path) -> None:
    """Every file under a final name is whole, and the report only speaks of what is there."""
    for path in results.glob("*.png"):
        with Image.open(path) as image:
            image.load()
    report = results / "predictions.json"
    if report.exists():
        for image in json.loads(report.read_text())["images"]:
            with Image.open(results / image["mask"]) as mask:
                labels = np.asarray(mask)
            assert list(labels.shape) == image["size"]
            assert image["ways"][0]["area"] == (labels == 1).sum()
            assert (results / image["overlay"]).exists()


def prepare(program: Program, scenario: str) -> tuple[object, ...]:
    """Bring the folder into a state, and return the options of the run to kill."""
    if scenario == "new folder":
        return ()
    program.predict()
    if scenario == "changed and new queries":
        draw(program.folder / "photos" / "a.png", seed=20, width=50)
        draw(program.folder / "photos" / "d.png", seed=21)
        return ()
    return ("--overwrite", "--size", 99)


@pytest.mark.parametrize(
    "scenario", ["new folder", "changed and new queries", "overwrite with other settings"]
)
def test_run_killed_at_any_step_leaves_a_consistent_folder_and_is_resumed(
    program, monkeypatch, scenario
):
    # One writer: the order of steps is then the same in each run.
    monkeypatch.setattr("fastfss.cli.prediction_run._WRITERS", 1)
    for step in range(1000):
        for path in program.results.glob("*") if program.results.exists() else ():
            path.unlink()
        for seed, name in enumerate("abc", start=1):
            draw(program.folder / "photos" / f"{name}.png", seed=seed, width=40 + seed)
        (program.folder / "photos" / "d.png").unlink(missing_ok=True)
        options = prepare(program, scenario)
        try:
            with killed_at(step, monkeypatch) as done:
                program.predict(*options)
        except Killed:
            pass
        finished = done[0] <= step
        check_consistent(program.results)
        outcome = program.predict(*options)
        assert outcome.code == 0
        assert program.report()["pending"] == 0
        check_consistent(program.results)
        assert not list(program.results.glob(".*"))
        images = program.images()
        if step == 0:
            expected = images
        assert images == expected
        if finished:
            break
    assert finished
    assert step > 15


def test_torn_and_strange_lines_of_the_journal_are_as_if_not_there(program):
    program.predict()
    expected = program.images()
    journal = program.results / "predictions.jsonl"
    header, first, *_ = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(header + first + b'[1]\n\xff\n{"file": "x\n{}\n' + first[:50])
    assert "2 segmented, 1 done before" in program.predict().out
    assert program.images() == expected


def test_journal_of_another_program_is_refused(program):
    program.results.mkdir()
    (program.results / "predictions.jsonl").write_text('{"hello": 1}\n')
    outcome = program.predict()
    assert outcome.code == 2
    assert "expected a journal in the format fastfss-predictions-1, got another file" in outcome.err


def test_report_is_made_again_from_the_journal(program):
    program.predict()
    report = program.report()
    (program.results / "predictions.json").unlink()
    assert "3 done before" in program.predict().out
    assert program.report() == report


def test_second_run_into_the_same_folder_is_refused(program):
    pytest.importorskip("fcntl")
    program.results.mkdir()
    with PredictionFolder(program.results, {}):
        outcome = program.predict()
        assert outcome.err == (
            f"error: --out '{program.results}': another fastfss predict is writing there\n"
        )
    assert program.predict().code == 0


def test_journal_grows_by_one_line_a_query(program, monkeypatch):
    """Writing the report for each query would make long runs quadratic."""
    reports = []
    report = PredictionFolder.report
    monkeypatch.setattr(
        PredictionFolder, "report", lambda self, **state: (reports.append(1), report(self, **state))
    )
    program.predict()
    assert len(reports) == 2
    assert len((program.results / "predictions.jsonl").read_text().splitlines()) == 4
