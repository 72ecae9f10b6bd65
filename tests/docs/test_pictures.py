"""docs/make_pictures.py makes the pictures that the pages show."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.docs.pages import DOCS, ROOT


@pytest.mark.slow
def test_pictures_are_what_the_code_makes(tmp_path: Path) -> None:
    pytest.importorskip("skimage", reason='not installed: pip install "fastfss[app]"')
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, str(DOCS / "make_pictures.py"), str(tmp_path)]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": paths})
    kept = {path.name: path for path in (DOCS / "pictures").iterdir()}
    assert kept.keys() == {path.name for path in tmp_path.iterdir()}
    for name, path in kept.items():
        was, now = (np.asarray(Image.open(one)).astype(int) for one in (path, tmp_path / name))
        assert was.shape == now.shape, name
        # Another CPU's rounding moves a contour here and there.
        assert (abs(was - now).max(axis=-1) > 48).mean() < 0.01, f"{name}: make the pictures anew"
