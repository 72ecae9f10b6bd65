"""Engine folders of small models, each exported once a run."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.small import export

Exported = Callable[..., Path]


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """`exported("ssp", precision="bf16")`: the folder. It is shared: do not change it."""
    root = tmp_path_factory.mktemp("engines")
    made: dict[str, Path] = {}

    def folder(method: str, **settings: object) -> Path:
        key = " ".join([method, *(f"{name}={value}" for name, value in settings.items())])
        if key not in made:
            out = root / str(len(made))
            export(method, out, **settings)
            made[key] = out
        return made[key]

    return folder


@pytest.fixture
def own_copy(exported: Exported, tmp_path: Path) -> Path:
    """A copy of SSP's engine, to be changed."""
    return Path(shutil.copytree(exported("ssp"), tmp_path / "engine"))
