"""Every golden case of a folder: FASTFSS_PARITY_DIR, by default the few that the project carries.

Cases of a method are recognised by the file name up to the first underscore. Where shared/parity
lies beside the checkout, its cases run too unless FASTFSS_PARITY_DIR names another folder.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.parity.canet_pgnet import run_canet, run_pgnet
from tests.parity.clip import run_clip
from tests.parity.dcama import run_dcama
from tests.parity.denet_amp import run_amp, run_denet
from tests.parity.golden import Case, Report, Runner, cases
from tests.parity.guided import run_guided
from tests.parity.hsnet import run_hsnet
from tests.parity.images import run_denet_augment, run_panet_annotations
from tests.parity.imr import run_imr
from tests.parity.metrics import run_hsnet_eval, run_metrics
from tests.parity.panet import run_panet
from tests.parity.pfenet import run_pfenet
from tests.parity.ppnet import run_ppnet
from tests.parity.samplers import run_denet_sampler, run_hsnet_sampling, run_panet_sampler
from tests.parity.ssp_mlc import run_mlc, run_ssp

RUNNERS: dict[str, Runner] = {
    "amp": run_amp,
    "canet": run_canet,
    "clip": run_clip,
    "dcama": run_dcama,
    "denet": run_denet,
    "guided": run_guided,
    "hsnet": run_hsnet,
    "imr": run_imr,
    "metrics": run_metrics,
    "mlc": run_mlc,
    "panet": run_panet,
    "pfenet": run_pfenet,
    "pgnet": run_pgnet,
    "ppnet": run_ppnet,
    "ssp": run_ssp,
}
# What is not a network has runners of its own: by prefix and kind.
PARTS: dict[tuple[str, str], Runner] = {
    ("denet", "augment"): run_denet_augment,
    ("denet", "sampler"): run_denet_sampler,
    ("hsnet", "eval"): run_hsnet_eval,
    ("hsnet", "sampling"): run_hsnet_sampling,
    ("panet", "annotations"): run_panet_annotations,
    ("panet", "sampler"): run_panet_sampler,
}

# Methods of the golden cases that fastfss does not hold yet; an unknown name is an error.
NOT_YET: set[str] = set()

CARRIED = Path(__file__).parent / "cases"
SHARED = Path(__file__).parents[3] / "shared" / "parity"


def _folder() -> Path:
    if (chosen := os.environ.get("FASTFSS_PARITY_DIR")) is not None:
        return Path(chosen)
    return SHARED if SHARED.is_dir() else CARRIED


@pytest.mark.parametrize("path", list(cases(_folder())), ids=lambda path: path.stem)
def test_case_equals_the_reference(
    path: Path, record_parity: Callable[[str, Report], None]
) -> None:
    prefix = path.stem.partition("_")[0]
    known = RUNNERS.keys() | NOT_YET
    assert prefix in known, f"{path.name}: unknown prefix; known are {sorted(known)}"
    case, report = Case(path), Report()
    runner = PARTS.get((prefix, str(case.value("kind"))), RUNNERS.get(prefix))
    if runner is None:
        pytest.skip(f"{prefix}: not in fastfss yet")
    runner(case, report)
    assert report.errors, "nothing was compared"
    record_parity(path.stem, report)
    assert not report.failures, "\n".join(report.failures)


def test_the_folder_holds_cases() -> None:
    assert list(cases(_folder())), f"no .npz files in {_folder()}"


def test_an_unknown_prefix_fails(tmp_path: Path) -> None:
    (tmp_path / "nobody_case.npz").write_bytes(b"")
    command = [sys.executable, "-m", "pytest", str(Path(__file__)), "-k", "equals"]
    own = {"FASTFSS_PARITY_DIR": str(tmp_path), "PYTEST_XDIST_AUTO_NUM_WORKERS": "0"}
    result = subprocess.run(
        [*command, "-p", "no:cacheprovider"],
        env={**os.environ, **own},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    assert "nobody_case.npz: unknown prefix" in result.stdout
