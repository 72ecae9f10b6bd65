"""docs/methods.md: every method, the same things of each in the same order, and tables as made."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fastfss import list_models, model_info
from tests.docs.pages import DOCS, ROOT

PARTS = ("The idea", "Faithful details", "Options", "Parity", "Scores", "Speed")
# Methods whose section is called otherwise than they are.
SECTIONS = {
    "cue-fusion": "Cue fusion",
    "guided-early": "Guided networks",
    "guided-late": "Guided networks",
}


def section(title: str) -> str:
    page = (DOCS / "methods.md").read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found is not None, f"docs/methods.md has no section {title}"
    return found[1]


@pytest.mark.parametrize("method", list_models())
def test_a_method_s_section_has_its_six_parts_in_order(method):
    text = section(SECTIONS.get(method, model_info(method).title))
    labels = [label.rstrip(".") for label in re.findall(r"^\*\*([^*]+)\*\*", text, re.MULTILINE)]
    assert [label for label in labels if label in PARTS] == list(PARTS)


@pytest.mark.parametrize("method", list_models())
def test_published_scores_are_on_the_page(method):
    text = section(SECTIONS.get(method, model_info(method).title))
    assert (f"<!-- made: scores {method} -->" in text) == bool(model_info(method).scores)


def test_tables_are_those_of_the_code_and_of_the_measurements(tmp_path: Path):
    copy = tmp_path / "methods.md"
    shutil.copy(DOCS / "methods.md", copy)
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(DOCS / "make_methods.py"), str(copy)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths})
    made, kept = (path.read_text(encoding="utf-8") for path in (copy, DOCS / "methods.md"))
    assert "<!-- made: " in kept
    assert made == kept, "run: python docs/make_methods.py"
