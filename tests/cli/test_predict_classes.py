"""Which classes `fastfss predict` looks for: support, support folders, saved tasks."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from fastfss import Task
from tests.cli.conftest import Program, draw, draw_mask


def test_value_picks_the_class_of_a_label_map(program):
    options = ("--support", program.folder / "support.png", program.folder / "support_labels.png")
    run = ("predict", *options, "--query", program.folder / "photos", "--out", program.results)
    assert "2 labels: 1, 2" in program.run(*run).err
    assert program.run(*run, "--value", 2).code == 0
    for file, truth in program.truth.items():
        assert program.images()[file]["ways"][0]["area"] == (truth == 2).sum()
        assert program.images()[file]["ways"][0]["name"] == "object"


def test_several_shots_make_one_class(program):
    labels = draw(program.folder / "second.png", seed=5)
    draw_mask(program.folder / "second_mask.png", (labels == 1).astype(np.uint8))
    second = (program.folder / "second.png", program.folder / "second_mask.png")
    support = (program.folder / "support.png", program.folder / "support_mask.png")
    task = program.folder / "bright.safetensors"
    outcome = program.run("predict", "--support", *support, *second, "--save-task", task)
    assert (outcome.code, outcome.out, outcome.err) == (0, "", "")
    assert Task.load(task).shots == 2


def two_classes(program: Program) -> tuple[object, object]:
    """Support folders of the bright and the grey rectangle."""
    for name, label in (("bright", 1), ("grey", 2)):
        labels = draw(program.folder / name / "1.png", seed=3)
        draw_mask(program.folder / name / "1_mask.png", (labels == label).astype(np.uint8))
    return program.folder / "bright", program.folder / "grey"


def check_two_ways(program: Program) -> None:
    for file, truth in program.truth.items():
        image = program.images()[file]
        assert [way["name"] for way in image["ways"]] == ["bright", "grey"]
        assert [way["area"] for way in image["ways"]] == [(truth == 1).sum(), (truth == 2).sum()]
        with Image.open(program.results / image["mask"]) as mask:
            np.testing.assert_array_equal(np.asarray(mask), truth)


def test_support_folders_are_several_ways(program):
    out = ("--query", program.folder / "photos", "--out", program.results)
    assert program.run("predict", "--support-folder", *two_classes(program), *out).code == 0
    check_two_ways(program)


def test_saved_tasks_are_several_ways_and_give_the_same(program):
    bright, grey = two_classes(program)
    tasks = [program.folder / f"{name}.safetensors" for name in ("bright", "grey")]
    program.run("predict", "--support-folder", bright, "--save-task", tasks[0])
    out = ("--query", program.folder / "photos", "--out")
    program.run(
        "predict", "--support-folder", grey, "--save-task", tasks[1], *out, program.folder / "g"
    )
    assert program.run("predict", "--task", *tasks, *out, program.results).code == 0
    check_two_ways(program)


def test_task_of_another_model_is_refused_before_anything_is_written(program):
    task = program.folder / "other.safetensors"
    Task("ssp", {"level": torch.zeros(1, 1)}, "cow").save(task)
    outcome = program.run(
        *("predict", "--task", task, "--query", program.folder / "photos", "--out", program.results)
    )
    assert outcome.err == "error: task: expected a task of method 'fake', got one of 'ssp'\n"
    assert not list(program.results.iterdir())


def test_place_of_the_saved_task_is_checked_before_any_work(program):
    for place in (program.folder, program.folder / "absent" / "t.safetensors"):
        assert program.predict("--save-task", place).code == 2
    assert program.built == 0
