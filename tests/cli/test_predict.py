"""What `fastfss predict` writes and says, with a fake model."""

from __future__ import annotations

import os
import shutil
import signal

import numpy as np
import pytest
import torch
from PIL import Image

from fastfss.atomic import TEMPORARY_SUFFIX
from fastfss.data import read_mask
from tests.cli.conftest import Program, draw, draw_mask
from tests.cli.fake_model import FakeModel


def outputs(program: Program) -> set[str]:
    return {path.name for path in program.results.iterdir()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning:pycocotools")
def test_each_query_gets_a_mask_an_overlay_and_an_entry(program):
    coco = pytest.importorskip("pycocotools.mask")
    outcome = program.predict()
    assert (outcome.code, outcome.err) == (0, "")
    report = program.results / "predictions.json"
    assert outcome.out == f"3 images: 3 segmented, 0 done before, 0 failed -> {report}\n"
    assert outputs(program) == {
        *(f"{name}_{kind}.png" for name in "abc" for kind in ("mask", "overlay")),
        *("predictions.json", "predictions.jsonl"),
    }
    for file, truth in program.truth.items():
        image = program.images()[file]
        expected = truth == 1
        np.testing.assert_array_equal(
            read_mask(program.results / image["mask"]).numpy(), expected.astype(np.uint8)
        )
        with Image.open(program.results / image["overlay"]) as overlay:
            assert overlay.size == truth.shape[::-1]
        assert image["size"] == list(truth.shape)
        (way,) = image["ways"]
        assert (way["name"], way["label"], way["area"]) == ("bright", 1, expected.sum())
        assert 0 < way["confidence"] <= 1
        np.testing.assert_array_equal(coco.decode(way["rle"]), expected)
    assert program.report()["failed"] == []
    assert program.report()["pending"] == 0
    assert all(image["seconds"] >= 0 for image in program.report()["images"])
    assert program.report()["settings"]["ways"][0]["name"] == "bright"


def test_second_run_does_nothing_and_loads_no_model(program):
    program.predict()
    before = {path: path.stat().st_mtime_ns for path in program.results.glob("*.png")}
    report = program.report()
    outcome = program.predict()
    assert "0 segmented, 3 done before" in outcome.out
    assert (outcome.code, program.built) == (0, 1)
    assert {path: path.stat().st_mtime_ns for path in program.results.glob("*.png")} == before
    assert program.report() == report


def test_only_what_is_missing_or_changed_is_segmented_again(program):
    program.predict()
    expected = program.images()
    (program.results / "a_overlay.png").unlink()
    (program.results / "b_mask.png").write_bytes(b"half")
    truth = draw(program.folder / "photos" / "c.png", seed=9, width=60)
    assert "3 segmented, 0 done before" in program.predict().out
    images = program.images()
    assert images.pop("c.png")["size"] == list(truth.shape)
    del expected["c.png"]
    assert images == expected


def test_new_queries_are_added_and_earlier_results_stay(program):
    first = program.predict(queries=[program.folder / "photos" / "a.png"])
    assert "1 segmented" in first.out
    outcome = program.predict(queries=[program.folder / "photos" / "c.png"])
    assert "1 images: 1 segmented, 0 done before" in outcome.out
    assert set(program.images()) == {"a.png", "c.png"}
    assert "2 segmented" not in program.predict().out
    assert set(program.images()) == {"a.png", "b.png", "c.png"}


def test_result_of_a_query_that_is_gone_stays(program):
    program.predict()
    (program.folder / "photos" / "a.png").unlink()
    assert "2 images: 0 segmented, 2 done before" in program.predict().out
    assert set(program.images()) == {"a.png", "b.png", "c.png"}


def test_equal_stems_from_different_folders_do_not_overwrite_each_other(program):
    other = draw(program.folder / "more" / "a.png", seed=7, width=50)
    outcome = program.predict(queries=[program.folder / "photos", program.folder / "more"])
    assert "4 images: 4 segmented" in outcome.out
    by_file = {image["file"]: image for image in program.report()["images"]}
    first = by_file[str(program.folder / "photos" / "a.png")]
    second = by_file[str(program.folder / "more" / "a.png")]
    assert (first["mask"], second["mask"]) == ("a_mask.png", "a_2_mask.png")
    assert read_mask(program.results / first["mask"]).shape == program.truth["a.png"].shape
    assert read_mask(program.results / second["mask"]).shape == other.shape


def test_other_settings_are_refused_and_named(program):
    program.predict()
    before = outputs(program)
    outcome = program.predict("--size", 99, "--no-refine")
    assert outcome.code == 2
    assert outcome.err == (
        f"error: --out '{program.results}': made with other settings (size was not given, now 99; "
        "refine was not given, now False); choose another folder, or give --overwrite to begin "
        "anew\n"
    )
    assert outputs(program) == before
    assert program.built == 1


def test_settings_that_do_not_change_results_may_differ(program):
    program.predict()
    threads = torch.get_num_threads()
    assert program.predict("--threads", 1, "--device", "cpu").code == 0
    torch.set_num_threads(threads)


def test_overwrite_begins_anew_and_leaves_other_files(program):
    program.predict()
    (program.results / "notes.txt").touch()
    queries = [program.folder / "photos" / "b.png"]
    outcome = program.predict("--overwrite", "--size", 99, queries=queries)
    assert "1 images: 1 segmented, 0 done before" in outcome.out
    assert set(program.images()) == {"b.png"}
    assert outputs(program) == {
        *("b_mask.png", "b_overlay.png", "predictions.json", "predictions.jsonl", "notes.txt")
    }


def test_failed_start_loses_nothing_and_binds_nobody(program, monkeypatch):
    def refuse(*_: object, **__: object) -> FakeModel:
        raise ValueError("no such layer")

    with monkeypatch.context() as broken:
        broken.setattr("fastfss.cli.predict.build_model", refuse)
        assert program.predict("--size", 5).err == "error: no such layer\n"
        assert outputs(program) == set()
    program.predict()
    report = program.report()
    with monkeypatch.context() as broken:
        broken.setattr("fastfss.cli.predict.build_model", refuse)
        assert program.predict("--overwrite", "--size", 5).code == 2
    assert program.report() == report
    assert "3 done before" in program.predict().out


def test_file_that_is_not_ours_is_not_replaced(program):
    program.results.mkdir()
    for name in ("b_overlay.png", "predictions.json"):
        (program.results / name).write_text("mine")
        outcome = program.predict()
        assert outcome.code == 2
        assert f"holds '{name}', which no run recorded here wrote" in outcome.err
        assert (program.results / name).read_text() == "mine"
        assert outputs(program) == {name}
        (program.results / name).unlink()
    (program.results / "b_overlay.png").write_text("mine")
    assert program.predict("--overwrite").code == 0


def test_new_query_does_not_replace_a_file_that_is_not_ours(program):
    program.predict(queries=[program.folder / "photos" / "a.png"])
    (program.results / "b_mask.png").write_text("mine")
    assert program.predict().code == 2
    assert (program.results / "b_mask.png").read_text() == "mine"
    assert set(program.images()) == {"a.png"}


def test_unreadable_queries_are_reported_and_the_rest_goes_on(program):
    photos = program.folder / "photos"
    whole = (photos / "b.png").read_bytes()
    (photos / "b.png").write_bytes(whole[:60])
    (photos / "d.jpg").touch()
    outcome = program.predict()
    assert outcome.code == 1
    assert "4 images: 2 segmented, 0 done before, 2 failed" in outcome.out
    lines = outcome.err.splitlines()
    assert lines[0].startswith(f"failed: query '{photos / 'b.png'}': cannot be read")
    assert lines[1] == f"failed: query '{photos / 'd.jpg'}': not an image that Pillow can read"
    assert set(program.images()) == {"a.png", "c.png"}
    failed = program.report()["failed"]
    assert [failure["file"] for failure in failed] == [str(photos / "b.png"), str(photos / "d.jpg")]
    assert f"failed: {failed[0]['error']}" == lines[0]
    assert program.report()["pending"] == 0
    assert "b_mask.png" not in outputs(program)

    (photos / "b.png").write_bytes(whole)
    (photos / "d.jpg").unlink()
    assert program.predict().code == 0
    assert program.report()["failed"] == []
    assert set(program.images()) == {"a.png", "b.png", "c.png"}


def test_outputs_of_a_photo_that_became_unreadable_are_removed(program):
    program.predict()
    (program.folder / "photos" / "b.png").write_bytes(b"broken")
    assert program.predict().code == 1
    assert set(program.images()) == {"a.png", "c.png"}
    assert not {"b_mask.png", "b_overlay.png"} & outputs(program)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("query: expected at least 12 positions, got 4"),
        MemoryError("no memory"),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_query_that_the_model_cannot_do_is_reported_and_the_rest_goes_on(program, error):
    program.model.fail_on = (program.truth["b.png"].shape[1], error)
    outcome = program.predict()
    assert outcome.code == 1
    assert set(program.images()) == {"a.png", "c.png"}
    text = str(error).removeprefix("query: ")
    assert program.report()["failed"] == [
        {
            "file": str(program.folder / "photos" / "b.png"),
            "error": f"query '{program.folder / 'photos' / 'b.png'}': {text}",
        }
    ]


def test_bug_in_the_model_is_not_taken_for_a_bad_query(program):
    program.model.fail_on = (program.truth["b.png"].shape[1], RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        program.predict()
    assert set(program.images()) == {"a.png"}
    assert program.report()["pending"] == 2
    program.model.fail_on = None
    assert "2 segmented, 1 done before" in program.predict().out


def test_interruption_finishes_what_is_being_written_and_can_be_resumed(program):
    program.model.fail_on = (program.truth["c.png"].shape[1], KeyboardInterrupt())
    outcome = program.predict()
    assert outcome.code == 130
    assert "3 images: 2 segmented" in outcome.out
    assert "the same command goes on" in outcome.err
    assert set(program.images()) == {"a.png", "b.png"}
    assert program.report()["pending"] == 1
    program.model.fail_on = None
    assert "1 segmented, 2 done before" in program.predict().out
    assert program.report()["pending"] == 0


def test_run_that_came_to_nothing_binds_nobody_to_its_settings(program):
    program.model.fail_on = (program.truth["a.png"].shape[1], KeyboardInterrupt())
    assert program.predict("--size", 99).code == 130
    assert program.images() == {}
    program.model.fail_on = None
    assert program.predict().code == 0


def test_full_disk_stops_the_run_and_keeps_what_is_done(program, monkeypatch):
    save = Image.Image.save

    def run_out(image: Image.Image, path: object, **options: object) -> None:
        if "b_overlay" in str(path):
            raise OSError(28, "No space left on device", str(path))
        save(image, path, **options)

    with monkeypatch.context() as full:
        full.setattr(Image.Image, "save", run_out)
        outcome = program.predict()
    assert outcome.code == 2
    assert outcome.err.endswith(": No space left on device\n")
    assert set(program.images()) == {"a.png"}
    assert not [name for name in outputs(program) if name.endswith(TEMPORARY_SUFFIX)]
    assert "2 segmented, 1 done before" in program.predict().out


def test_out_that_is_a_file_is_refused_before_any_work(program):
    out = program.folder / "support.png"
    outcome = program.predict(out=out)
    assert outcome.err == f"error: --out '{out}': expected a folder, got a file\n"
    outcome = program.predict(out=out / "deeper")
    assert outcome.err == f"error: --out '{out / 'deeper'}': expected a folder, got a file\n"
    assert program.built == 0


def test_out_that_cannot_be_written_is_refused_before_any_work(program, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.write_text", refuse)
    outcome = program.predict()
    assert outcome.code == 2
    assert outcome.err == f"error: --out: cannot write to '{program.results}' (Permission denied)\n"
    assert program.built == 0


def test_out_may_not_be_the_folder_of_the_queries(program):
    outcome = program.predict(out=program.folder / "photos")
    assert outcome.code == 2
    assert "--out: expected another folder than that of the queries" in outcome.err
    assert len(list((program.folder / "photos").iterdir())) == 3


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            lambda p: (p.folder / "support.png").unlink(),
            "support image '{}/support.png': no such file",
        ),
        (
            lambda p: draw_mask(p.folder / "support_mask.png", np.zeros((30, 40), np.uint8)),
            "shots[0] mask '{}/support_mask.png': expected some foreground, got 0 in every pixel",
        ),
        (
            lambda p: shutil.rmtree(p.folder / "photos"),
            "--query '{}/photos': no such file or folder",
        ),
    ],
    ids=["missing support", "empty mask", "missing queries"],
)
def test_bad_input_is_one_line_and_writes_nothing(program, break_it, message):
    break_it(program)
    outcome = program.predict()
    assert outcome.code == 2
    assert outcome.err == f"error: {message.format(program.folder)}\n"
    assert not list(program.results.glob("*")) if program.results.exists() else True


def test_unknown_device_is_one_line(program):
    outcome = program.predict("--device", "abacus")
    assert outcome.code == 2
    assert outcome.err.startswith(
        "error: --device: expected a device of this machine, got 'abacus'"
    )


def test_missing_pycocotools_is_found_before_any_work(program, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools.mask", None)
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    outcome = program.predict()
    assert (outcome.code, program.built) == (2, 0)
    assert outcome.err == ('error: fastfss predict needs pycocotools: pip install "fastfss[cli]"\n')


def test_temporary_files_of_a_killed_run_are_removed(program):
    program.results.mkdir()
    left = program.results / f".a_mask.png.00000000{TEMPORARY_SUFFIX}"
    left.touch()
    program.predict()
    assert not left.exists()


def test_ctrl_c_lets_the_query_at_hand_finish_and_the_second_one_does_not(program, monkeypatch):
    presses = [1]
    predict = program.model.predict

    def pressed(*arguments: object) -> object:
        for _ in range(presses[0]):
            os.kill(os.getpid(), signal.SIGINT)
        return predict(*arguments)

    monkeypatch.setattr(program.model, "predict", pressed)
    handler = signal.getsignal(signal.SIGINT)
    assert program.predict().code == 130
    assert set(program.images()) == {"a.png"}
    assert program.report()["pending"] == 2
    presses[0] = 2
    assert program.predict().code == 130
    assert set(program.images()) == {"a.png"}
    assert signal.getsignal(signal.SIGINT) is handler
