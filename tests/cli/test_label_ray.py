"""`fastfss label --cluster`: a local Ray cluster comes to what one machine comes to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from fastfss.cli.label_ray import run_on_cluster
from fastfss.cli.label_shard import REQUEUES, Outcome
from tests.cli.label_jobs import FakeJob
from tests.cli.program import run
from tests.cli.test_label import job, whole  # noqa: F401
from tests.cli.test_label_shards import (
    IMAGES,
    contents,
    folder_of,
    job_of,
    label_here,
    photos,  # noqa: F401
    watch,
)

pytestmark = pytest.mark.slow
pytest.importorskip("ray", reason="needs fastfss[ray]")


def labelled(fake: FakeJob, images: Path) -> list[Outcome]:
    outcomes: list[Outcome] = []
    with folder_of(fake.out, images, fake.formats) as folder:
        told = watch(lambda _: folder.begin(), done=outcomes.append)
        run_on_cluster("local", fake, "auto", 2, 1, folder.pending(), told)
        folder.report()
        folder.finish(["bright"])
    return outcomes


def test_killed_actor_loses_nothing_and_repeats_nothing(photos, tmp_path):  # noqa: F811
    undisturbed = job_of(tmp_path, "whole")
    with folder_of(undisturbed.out, photos, undisturbed.formats) as folder:
        label_here(undisturbed, folder)
        folder.report()
        folder.finish(["bright"])
    cut_off = job_of(tmp_path, "cut-off", die_at=44, deaths=1)
    outcomes = labelled(cut_off, photos)
    assert sorted(outcome.number for outcome in outcomes) == [0, 1]
    assert cut_off.tried.read_text().split().count("44") == 2
    assert contents(cut_off.out) == contents(undisturbed.out)


def test_image_that_kills_every_actor_is_listed(photos, tmp_path):  # noqa: F811
    deadly = job_of(tmp_path, "deadly", die_at=44, deaths=99)
    outcomes = labelled(deadly, photos)
    assert deadly.tried.read_text().split().count("44") == 1 + REQUEUES
    assert sum(outcome.labelled for outcome in outcomes) == IMAGES - 1
    (line,) = (deadly.out / "failed.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == "a/4.png"


def test_error_on_the_cluster_is_one_line(photos, tmp_path):  # noqa: F811
    with pytest.raises(ChildProcessError, match=r"^--cluster local: .*task: no"):
        labelled(job_of(tmp_path, "out", on_start="task: no"), photos)


def test_program_makes_the_same_as_on_one_machine(job, whole, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    done = run(*job, "--shard-size", 2, "--cluster", "local", "--out", out)
    assert done.returncode == 0
    assert "12 images: 12 labelled" in done.stdout
    assert contents(out) == contents(whole)
