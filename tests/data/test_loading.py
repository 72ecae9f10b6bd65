"""The cache of decoded images: equal pixels, whoever decodes, whatever is cut or full."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import fastfss
from fastfss.data.loading import CachedImages, in_order
from fastfss.data.masks import IGNORED
from fastfss.data.prepare.coco import prepare_coco
from fastfss.data.sets import MaskSet, open_set
from tests.data.own_sets import label_map, write_pair
from tests.data.tiny_archives import make_coco
from tests.shared import shared

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZES = [None, 8, (5, 9), (40, 3)]


@pytest.fixture
def maps(tmp_path: Path) -> MaskSet:
    """Label maps of odd sizes with 255."""
    root = tmp_path / "maps"
    root.mkdir()
    (root / "classes.txt").write_text("cat\ndog\nsofa\n")
    for n, (size, labels) in enumerate(
        [((7, 9), (0, 1, 2)), ((13, 21), (2, IGNORED)), ((30, 17), (0,)), ((11, 11), (3, 1, 3))]
    ):
        image, mask = root / "images" / f"{n}.png", root / "masks" / f"{n}.png"
        write_pair(image, mask, label_map(*size, labels), seed=n)
    return open_set("folder", root)


@pytest.fixture
def overlapping(tmp_path: Path) -> MaskSet:
    """COCO with a mask of its own for each class."""
    archives = make_coco(tmp_path / "archives").folder
    prepare_coco(tmp_path, [archives], parts=["val"], overlaps=True)
    return open_set("coco", tmp_path, overlaps=True)


@pytest.fixture
def many_classes(tmp_path: Path) -> MaskSet:
    """More classes than a label map has, in folders."""
    for n in range(256):
        folder = tmp_path / "many" / f"{n:03}"
        write_pair(folder / "1.jpg", folder / "1.png", label_map(6, 5, (0, 1, IGNORED)), seed=n)
    return open_set("folder", tmp_path / "many")


def resized(image: Tensor, size: int | tuple[int, int] | None) -> Tensor:
    if size is None:
        return image
    height, width = (size, size) if isinstance(size, int) else size
    pillow = Image.fromarray(image.permute(1, 2, 0).numpy())
    small = np.array(pillow.resize((width, height), Image.Resampling.BILINEAR))
    return torch.from_numpy(small).permute(2, 0, 1)


def shrunk(mask: Tensor, size: int | tuple[int, int] | None, rule: str) -> Tensor:
    """Nearest neighbour written out: floor(i H / n), or floor((i + 1/2) H / n)."""
    if size is None:
        return mask
    shift = 0.5 if rule == "pillow" else 0.0
    wanted = (size, size) if isinstance(size, int) else size
    rows, columns = (
        ((torch.arange(n) + shift) * length / n).floor().long()
        for n, length in zip(wanted, mask.shape, strict=True)
    )
    return mask[rows][:, columns]


@pytest.mark.parametrize("rule", ["torch", "pillow"])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", ["memory", "file"])
def test_pixels_are_the_sets_own_whether_cached_or_not(
    maps: MaskSet, tmp_path: Path, place: str, size: Any, rule: Any
) -> None:
    where: dict[str, Any] = {"memory_mib": 1} if place == "memory" else {"path": tmp_path / "cache"}
    cached = CachedImages(maps, size, mask_resize=rule, **where)
    for _ in ("decoded", "cached"):
        for number in range(len(maps.items)):
            assert cached.image(number).equal(resized(maps.image(number), size))
            assert cached.labels(number).equal(shrunk(maps.labels(number), size, rule))
            for cls in maps.classes:
                mask = cached.mask(number, cls)
                assert mask.equal(shrunk(maps.mask(number, cls), size, rule))
                assert mask.dtype == torch.uint8
    assert cached.room == (4, 4)
    assert cached.digest == maps.digest and cached.index() == maps.index()


@pytest.mark.parametrize("kind", ["overlapping", "many_classes"])
@pytest.mark.parametrize("size", [None, (20, 31)])
def test_masks_that_labels_do_not_tell_are_kept_too(
    kind: str, size: Any, request: pytest.FixtureRequest
) -> None:
    images: MaskSet = request.getfixturevalue(kind)
    cached = CachedImages(images, size, memory_mib=4)
    for _ in ("decoded", "cached"):
        for number in range(0, len(images.items), 50 if kind == "many_classes" else 1):
            for cls in (*images.items[number].pixels, 7):
                truth = shrunk(images.mask(number, cls), size, "torch")
                assert cached.mask(number, cls).equal(truth)
    if kind == "overlapping":
        assert cached.labels(0).equal(shrunk(images.labels(0), size, "torch"))
    else:
        with pytest.raises(ValueError, match="class ids up to 254 for a label map"):
            cached.labels(0)


class Counting(MaskSet):
    """A set that notes which images it decodes."""

    def __init__(self, images: MaskSet) -> None:
        self.images = images
        self.name, self.root, self.classes = images.name, images.root, images.classes
        self.items, self.ignores = images.items, images.ignores
        self.decoded: list[int] = []

    def image(self, number: int) -> Tensor:
        self.decoded.append(number)
        return self.images.image(number)

    def labels(self, number: int) -> Tensor:
        return self.images.labels(number)


def test_each_image_is_decoded_once(maps: MaskSet, tmp_path: Path) -> None:
    counting = Counting(maps)
    cached = CachedImages(counting, 8, path=tmp_path / "cache")
    for number in (2, 0, 2, 2, 0):
        cached.image(number)
        cached.mask(number, 1)
    assert counting.decoded == [2, 0]
    again = CachedImages(counting, 8, path=tmp_path / "cache")
    seen: list[tuple[int, int]] = []
    again.fill(lambda done, total: seen.append((done, total)), threads=2)
    assert sorted(counting.decoded) == [0, 1, 2, 3]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_what_has_no_room_is_decoded_every_time(tmp_path: Path) -> None:
    for n in range(4):
        image, mask = tmp_path / "images" / f"{n}.png", tmp_path / "masks" / f"{n}.png"
        write_pair(image, mask, label_map(300, 300, (0, 1)), seed=n)
    counting = Counting(open_set("folder", tmp_path))
    for where in ({"memory_mib": 1}, {"path": tmp_path / "cache", "limit_mib": 1}):
        cached = CachedImages(counting, None, **where)  # type: ignore[arg-type]
        assert cached.room == (2, 4)  # of 360 kB each
        counting.decoded.clear()
        for _ in range(2):
            for number in range(4):
                assert cached.image(number).equal(counting.images.image(number))
        assert counting.decoded == [0, 1, 2, 3, 2, 3]
    file = next((tmp_path / "cache").iterdir())
    assert file.stat().st_size < 1 << 20


def test_a_file_of_other_images_is_not_taken(maps: MaskSet, tmp_path: Path) -> None:
    def image(images: MaskSet, size: Any = None) -> Tensor:
        return CachedImages(images, size, path=tmp_path / "cache").image(0)

    first = image(maps)
    path = maps.items[0].image
    Image.fromarray(255 - np.asarray(Image.open(path))).save(path)
    changed = open_set("folder", maps.root)
    assert changed.digest == maps.digest
    assert image(changed).equal(255 - first)
    assert image(changed, 8).shape == (3, 8, 8)
    assert len(list((tmp_path / "cache").iterdir())) == 3


def test_damaged_items_are_decoded_again(maps: MaskSet, tmp_path: Path) -> None:
    CachedImages(maps, 8, path=tmp_path / "cache").fill()
    file = next((tmp_path / "cache").iterdir())
    content = bytearray(file.read_bytes())
    content[4096 + 5] ^= 1  # of item 0
    content[4:8] = bytes(4)  # the sum of item 1
    content[2 * 4096 + 4096 :] = bytes(len(content) - 3 * 4096)  # items 2 and 3
    file.write_bytes(content)
    counting = Counting(maps)
    again = CachedImages(counting, 8, path=tmp_path / "cache")
    for number in range(4):
        assert again.image(number).equal(resized(maps.image(number), 8))
    assert counting.decoded == [0, 1, 2, 3]
    file.write_bytes(content[:-1])
    cut = CachedImages(maps, 8, path=tmp_path / "cache")
    assert cut.image(3).equal(resized(maps.image(3), 8))


def test_a_full_disk_is_no_error(
    maps: MaskSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(maps)
    cached = CachedImages(counting, 8, path=tmp_path / "cache")
    opened = Path.open

    def full(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if mode == "r+b":
            raise OSError(28, "No space left on device")
        return opened(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    for _ in range(2):
        assert cached.image(0).equal(resized(maps.image(0), 8))
    assert counting.decoded == [0, 0]


def test_results_may_be_written_to(maps: MaskSet) -> None:
    cached = CachedImages(maps, memory_mib=1)
    for _ in range(2):
        for read in (cached.image, cached.labels, lambda n: cached.mask(n, 1)):
            before = read(0).clone()
            read(0).fill_(9)
            assert read(0).equal(before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "memory_mib, path: expected one of them, got neither"),
        ({"memory_mib": 1, "path": "x"}, "memory_mib, path: expected one of them, got both"),
        ({"memory_mib": 0}, "memory_mib: expected at least 1, got 0"),
        ({"path": "x", "limit_mib": 0}, "limit_mib: expected at least 1, got 0"),
        ({"memory_mib": 1, "size": 0}, r"size: expected None, a side or \(height, width\), got 0"),
        ({"memory_mib": 1, "mask_resize": "area"}, "mask_resize: expected torch or pillow"),
    ],
)
def test_bad_options_are_named(maps: MaskSet, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CachedImages(maps, **options)


class Numbers(Dataset[Tensor]):
    def __init__(self, images: MaskSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images.items)

    def __getitem__(self, number: int) -> Tensor:
        return self.images.image(number)


@pytest.mark.parametrize("place", ["memory", "file"])
def test_forked_loaders_fill_what_their_parent_reads(
    maps: MaskSet, tmp_path: Path, place: str
) -> None:
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("this platform does not fork")
    where: dict[str, Any] = {"memory_mib": 1} if place == "memory" else {"path": tmp_path / "cache"}
    counting = Counting(maps)
    cached = CachedImages(counting, 8, **where)
    loader = DataLoader(
        Numbers(cached), batch_size=None, num_workers=2, multiprocessing_context="fork"
    )
    for number, image in enumerate(loader):
        assert image.equal(resized(maps.image(number), 8))
    for number in range(4):
        assert cached.image(number).equal(resized(maps.image(number), 8))
    assert counting.decoded == []  # by this process


@pytest.mark.parametrize("place", ["memory", "file"])
def test_a_cache_travels_to_a_spawned_process(maps: MaskSet, tmp_path: Path, place: str) -> None:
    import pickle

    where: dict[str, Any] = {"memory_mib": 1} if place == "memory" else {"path": tmp_path / "cache"}
    cached = CachedImages(Counting(maps), 8, **where)
    cached.fill()
    again = pickle.loads(pickle.dumps(cached))
    again.images.decoded.clear()
    for number in range(4):
        assert again.image(number).equal(cached.image(number))
    assert again.images.decoded == ([] if place == "file" else [0, 1, 2, 3])


_FILL = """
import sys
from fastfss.data.loading import CachedImages
from fastfss.data.sets import open_set
cached = CachedImages(open_set("folder", sys.argv[1]), 200, path=sys.argv[2])
cached.fill(lambda done, total: print(done, flush=True), threads=2)
"""


def test_a_killed_fill_leaves_no_wrong_pixel(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for n in range(300):
        image, mask = root / "images" / f"{n:03}.jpg", root / "masks" / f"{n:03}.png"
        write_pair(image, mask, label_map(90, 120, (0, 1)), seed=n)
    images = open_set("folder", root)
    environment = {**os.environ, "PYTHONPATH": str(Path(fastfss.__file__).parents[1])}
    filling = subprocess.Popen(
        [sys.executable, "-c", _FILL, str(root), str(tmp_path / "cache")],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert filling.stdout is not None
    while int(filling.stdout.readline()) < 40:
        pass
    filling.send_signal(signal.SIGKILL)
    filling.wait()
    counting = Counting(images)
    cached = CachedImages(counting, 200, path=tmp_path / "cache")
    for number in range(300):
        assert cached.image(number).equal(resized(images.image(number), 200))
    assert len(counting.decoded) <= 300 - 40
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_loading_in_order_keeps_the_order_and_a_bound() -> None:
    running = threading.Semaphore(0)
    started: list[int] = []

    def load(number: int) -> int:
        started.append(number)
        time.sleep(0.001 * (number % 3))
        running.release()
        return number * number

    results = in_order(load, range(50), threads=3, ahead=2)
    assert next(results) == 0
    time.sleep(0.05)
    assert len(started) <= 3 * 2 + 1
    assert list(results) == [number * number for number in range(1, 50)]


def test_loading_raises_an_error_in_its_place() -> None:
    def load(number: int) -> float:
        return 1 / (3 - number)

    results = in_order(load, range(10), threads=2)
    assert [next(results) for _ in range(3)] == [1 / 3, 1 / 2, 1.0]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_real_images_are_equal_from_the_cache(tmp_path: Path) -> None:
    images = open_set("folder", shared("data/coco_mini"))
    cached = CachedImages(images, 120, path=tmp_path)
    for _ in range(2):
        for number in range(0, len(images.items), 9):
            assert cached.image(number).equal(resized(images.image(number), 120))
            assert cached.labels(number).equal(shrunk(images.labels(number), 120, "torch"))
