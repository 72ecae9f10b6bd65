"""Engine folders of small models, each exported once a run; libraries that are not there."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.engines.fake_gpu import FakeDevice, State
from tests.engines.fake_trt import fake_tensorrt
from tests.engines.small import export
from tests.engines.test_trt_types import api

Exported = Callable[..., Path]
# Version, module and backend.
FAKES = {
    "10": ("10.16.1.11", "tensorrt", "tensorrt"),
    "11": ("11.4.0.106", "tensorrt", "tensorrt"),
    "rtx": ("1.7.1.116", "tensorrt_rtx_bindings", "tensorrt-rtx"),
}


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


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> State:
    """TensorRT 11, or what the test is parametrised with: "10", "11" or "rtx"."""
    version, module_name, backend = FAKES[getattr(request, "param", "11")]
    state = State(version=version, backend=backend)
    module = fake_tensorrt(state, api(getattr(request, "param", "11")))
    module.__spec__ = importlib.util.spec_from_loader(module_name, loader=None)
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings"):
        monkeypatch.setitem(sys.modules, name, module if name == module_name else None)
    monkeypatch.setattr(FakeDevice, "state", state, raising=False)
    monkeypatch.setattr("fastfss.engines.tensorrt.engine.Device", FakeDevice)
    # The real library's logger, where there is one, has to live on.
    monkeypatch.setattr("fastfss.engines.tensorrt.messages._LOGS", {})
    return state
