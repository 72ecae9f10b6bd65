"""The Python in README and docs runs, but for what a comment above a block excuses.

The blocks of a page run one after the other, as a reader would paste them, in a folder with files
of the names that they use; `model` is the default model unless the page makes one. Examples in
docstrings are doctests, which pytest collects by itself (pyproject.toml).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import fastfss
from tests.docs.pages import PAGES, blocks_of

SIZE = (720, 480)  # the examples' clicks lie within
# Follows a clip twice.
SLOW = {"docs/video.md"}
RUN = [page for page in PAGES if any(block.reason is None for block in blocks_of(page))]


def photograph(shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """A bright disc on a striped ground, and its mask."""
    y, x = np.mgrid[: SIZE[1], : SIZE[0]]
    mask = (x - 420 + shift) ** 2 + (y - 250) ** 2 < 120**2
    ground = 60 + 30 * ((x // 24 + y // 24) % 2)
    pixels = np.stack([ground, ground + 20, ground], axis=-1)
    pixels[mask] = (230, 180, 90)
    return pixels.astype(np.uint8), mask


def write_clip(path: Path, count: int = 122) -> None:
    av = pytest.importorskip("av", reason='not installed: pip install "fastfss[video]"')
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=24)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            pixels = photograph(number - 100)[0]
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode(None))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine take ten times as long."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with what the examples read."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(("cow1", "cow2", "photo", "field")):
        pixels, mask = photograph(20 * number)
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg")
        for ending in (".png", "_mask.png"):
            Image.fromarray(mask).save(tmp_path / f"{name}{ending}")
    return tmp_path


@pytest.mark.parametrize(
    "page", [pytest.param(one, marks=pytest.mark.slow if one in SLOW else ()) for one in RUN]
)
def test_the_python_of_a_page_runs(page: str, files: Path) -> None:
    blocks = [block for block in blocks_of(page) if block.reason is None]
    if any("clip.mp4" in block.code for block in blocks):
        write_clip(files / "clip.mp4")
    names: dict[str, Any] = {"fastfss": fastfss, "show": lambda *_: None, "__name__": page}
    if any("model" in block.code for block in blocks):
        names["model"] = fastfss.create_model("default")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for block in blocks:
            # Lines in a traceback are those of the page.
            code = "\n" * (block.line - 1) + block.code
            exec(compile(code, page, "exec"), names)


def test_pages_with_examples_are_found() -> None:
    assert {"README.md", "docs/index.md", "docs/your-own-images.md", "docs/video.md"} <= set(RUN)
