"""What README.md and docs/install.md tell a newcomer is what CI runs and what is in the package."""

from __future__ import annotations

import re

import pytest

from tests.packaging.clean import ROOT

README = (ROOT / "README.md").read_text()
INSTALL = (ROOT / "docs" / "install.md").read_text()
PYPROJECT = (ROOT / "pyproject.toml").read_text()


def pyproject() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11 brings tomllib")
    return tomllib.loads(PYPROJECT)


def set_up_commands() -> list[str]:
    """The README's indented lines that install something."""
    return re.findall(r"^    (pip install .+)$", README, re.MULTILINE)


def test_readme_has_two_set_up_commands():
    assert len(set_up_commands()) == 2


def test_ci_runs_the_readmes_test_command():
    (command,) = [command for command in set_up_commands() if command.endswith("pytest")]
    install, test = command.split(" && ")
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    (installing,) = [line for line in lines if line.startswith('stage "install" ')]
    assert installing.removeprefix('stage "install" ').replace(" --quiet", "") == install
    assert lines[-1] == test


def test_links_of_readme_and_docs_lead_to_files():
    for path in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", path.read_text()):
            assert (path.parent / link).exists(), f"{path.name}: {link}"


def test_every_extra_is_documented_and_no_other_is_named():
    extras = set(pyproject()["project"]["optional-dependencies"])
    documented = set(re.findall(r"^\| `([\w-]+)` \|", INSTALL.split("## What is built")[0], re.M))
    assert documented == extras
    named = re.findall(r'"(?:fastfss|\.)\[([\w,-]+)\]"', README + INSTALL)
    assert {name for names in named for name in names.split(",")} <= extras


def test_build_requirements_are_in_the_dev_extra():
    """The packaging tests build without isolation."""
    project = pyproject()
    required = set(project["build-system"]["requires"])
    assert required <= set(project["project"]["optional-dependencies"]["dev"])


def test_supported_pythons_are_classified():
    project = pyproject()["project"]
    minors = [c.rpartition(" :: ")[2] for c in project["classifiers"] if ":: 3." in c]
    assert project["requires-python"] == f">={minors[0]}"
    assert f"Python {minors[0]} to {minors[-1]}" in README
    assert f"Python {minors[0]} to {minors[-1]}" in INSTALL
