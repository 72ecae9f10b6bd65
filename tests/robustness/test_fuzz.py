"""Damaged files give something whole or a clear error; `tests.robustness.fuzz` runs for longer."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from fastfss import Annotation, Task
from fastfss.data.own_folder import open_folder
from fastfss.engines import EngineError, Manifest
from fastfss.errors import CheckpointError
from fastfss.training import load_recipe
from fastfss.training.checkpoints import read_training_state
from fastfss.video.coco import load_coco
from fastfss.video.rle import decode_labels, varints
from fastfss.weights import save_checkpoint
from tests.cli.conftest import Program
from tests.cli.conftest import program as program  # a fixture
from tests.robustness.fuzz import Whole, run
from tests.robustness.mutations import damaged, odd_json
from tests.robustness.targets import TARGETS
from tests.video.clips import session

CASES = 40


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_files_give_something_whole_or_a_clear_error(name: str, tmp_path: Path) -> None:
    ends, findings = run(name, range(CASES), tmp_path)
    assert not findings, "\n".join(f"seed {one.seed}: {one.what}" for one in findings)
    assert sum(ends.values()) == CASES and len(ends.keys() - {"whole"}) > 0


@pytest.mark.parametrize(
    "file", ["support.png", "support_mask.png", "photos/a.png", "results/predictions.jsonl"]
)
def test_the_program_says_one_line_and_leaves_whole_files(program: Program, file: str) -> None:
    assert program.predict().code == 0
    whole = (program.folder / file).read_bytes()
    for seed in range(12):
        rng = random.Random(seed)
        change = odd_json if file.endswith("jsonl") and seed % 2 else damaged
        (program.folder / file).write_bytes(change(whole, rng))
        done = program.predict(*(["--overwrite"] if seed % 3 else []))
        assert done.code in (0, 1, 2), done
        assert "Traceback" not in done.err
        lines = [line for line in done.err.splitlines() if line.startswith("error: ")]
        assert len(lines) == (done.code == 2), done.err
        assert not list(program.results.glob(".*fastfss-tmp"))
        json.loads((program.results / "predictions.json").read_text())


# ---- What was found, each once


def test_a_task_without_its_method_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "task.safetensors"
    metadata = {"format": "fastfss-task-1", "name": "cow", "settings": "{}"}
    save_checkpoint(path, {"p": torch.ones(1, 1, 2)}, metadata)
    with pytest.raises(ValueError, match=r"task\.safetensors \(without method"):
        Task.load(path)
    for settings in ("[]", "{", '{"encoder": 3}', "[" * 100_000):
        save_checkpoint(
            path, {"p": torch.ones(1, 1, 2)}, {**metadata, "method": "ssp", "settings": settings}
        )
        with pytest.raises(ValueError, match=r"task\.safetensors"):
            Task.load(path)
    save_checkpoint(path, {"p": torch.ones(3)}, {**metadata, "method": "ssp"})
    with pytest.raises(ValueError, match=r"task\.safetensors.* at least one tensor"):
        Task.load(path)


def test_a_training_checkpoint_of_damaged_bytes_is_refused(tmp_path: Path) -> None:
    whole = Whole(tmp_path, "training")
    path = tmp_path / "step-00000002.pt"
    torch.save({"format": "fastfss-training-1"}, path)
    with pytest.raises(CheckpointError, match="without its sampler"):
        read_training_state(path, None, "d")  # type: ignore[arg-type]
    assert whole.case(2)[1] is None  # a KeyError of the unpickler


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("versions",), "x"),
        (("shots",), 0.5),
        (("shots",), 0),
        (("task", 0, "dtype"), 3),
        (("task", 0, "dtype"), "nn"),
        (("encode", "file"), "../other/encode.onnx"),
        (("output", "align_corners"), None),
        (("settings",), {}),
    ],
)
def test_a_manifest_of_wrong_kinds_is_damaged(
    place: tuple[str | int, ...], value: object, tmp_path: Path
) -> None:
    path = TARGETS["manifest"].make(tmp_path)
    plain = inner = json.loads(path.read_text())
    for step in place[:-1]:
        inner = inner[step]
    inner[place[-1]] = value
    path.write_text(json.dumps(plain))
    with pytest.raises(EngineError, match=r"manifest\.json: damaged"):
        Manifest.read(tmp_path)


def test_text_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_bytes(b"about = '\xff'")
    with pytest.raises(ValueError, match=r"recipe\.toml: expected UTF-8 text, got other bytes at"):
        load_recipe(tmp_path / "recipe.toml")
    path = TARGETS["classes"].make(tmp_path)
    path.write_bytes(b"gr\xfcn\ncow\n")
    with pytest.raises(ValueError, match=r"classes\.txt': expected UTF-8 text"):
        open_folder(tmp_path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("events.jsonl", lambda data: data.replace(b'"mask"', b'"m\xffsk"', 1)),
        ("events.jsonl", lambda data: data.replace(b'"of":', b'"if":', 1)),
        ("events.jsonl", lambda data: data.replace(b'"frame":2', b'"frame":1e999', 1)),
        ("events.jsonl", lambda data: data.replace(b'"size":[60', b'"size":[61', 1)),
        ("events.jsonl", lambda data: data.replace(b'"marks"', b'"sparks"', 1)),
        ("results.jsonl", lambda data: data.replace(b"[0,1,", b"[4,1,", 1)),
        ("results.jsonl", lambda data: data.replace(b',"', b',"\xff', 1)),
        ("results.jsonl", lambda data: data.replace(b"A", b"B")),
        ("results.jsonl", lambda data: data.replace(b"[1]", b"[{}]", 1)),
    ],
)
def test_a_damaged_session_names_its_file(name: str, change: object, tmp_path: Path) -> None:
    path = TARGETS["video-events"].make(tmp_path).with_name(name)
    data = path.read_bytes()
    path.write_bytes(change(data))  # type: ignore[operator]
    assert path.read_bytes() != data
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        session(4, workspace=tmp_path)


def test_runs_that_would_unpack_to_any_size_are_refused() -> None:
    text = Annotation().area(torch.eye(3)).to_json()
    for change in (
        text.replace('"size": [3, 3]', '"size": [3, 4]'),
        text.replace("[1, 1]", "[1, 1000000000000]", 1),
        text.replace("[1, 1]", "[7, 1]", 1),
        text.replace("[1, 1]", "[1, 1e400]", 1),
    ):
        assert change != text
        with pytest.raises(ValueError, match="JSON of Annotation"):
            Annotation.from_json(change)
    # Four times 2 ** 62 is 0 in 64 bits.
    lengths = np.array([0, 2**62] * 4 + [0, 6], dtype=np.int64)
    with pytest.raises(ValueError, match="labels and lengths"):
        decode_labels(varints(lengths), (2, 3))


def test_infinite_numbers_in_coco_are_refused(tmp_path: Path) -> None:
    path = TARGETS["coco"].make(tmp_path)
    path.write_text(path.read_text().replace('"category_id":1', '"category_id":1e400'))
    with pytest.raises(ValueError, match=r"a\.json"):
        load_coco(session(4), path)


@pytest.mark.parametrize(
    "change",
    [
        lambda lines: [{"check": {}}, *lines],
        lambda lines: [{k: v for k, v in lines[0].items() if k != "settings"}, *lines[1:]],
        lambda lines: [{**lines[0], "names": {"/a.png": "../../a"}}, *lines[1:]],
        lambda lines: [lines[0], {**lines[1], "name": None}, lines[2]],
        lambda lines: [lines[0], {**lines[1], "file": 3}, lines[2]],
        lambda lines: [lines[0], {**lines[1], "check": {"bytes": 1}}, lines[2]],
    ],
)
def test_a_journal_of_wrong_kinds_is_refused_or_made_good(change: object, program: Program) -> None:
    assert program.predict().code == 0
    path = program.results / "predictions.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    changed = change(lines)  # type: ignore[operator]
    path.write_text("".join(json.dumps(line) + "\n" for line in changed))
    done = program.predict()
    assert done.code == 0 or "predictions.jsonl': expected a journal" in done.err
    assert program.predict("--overwrite").code == 0
    assert len(program.images()) == 3
