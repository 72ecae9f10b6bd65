"""Images that are decoded once: a set in front of a set, with its pixels in memory or on disk."""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastfss.atomic import atomic_path
from fastfss.data.index import Progress
from fastfss.data.masks import IGNORED
from fastfss.data.resizing import MaskResize, resize_image, resize_maps
from fastfss.data.sets import MOST_CLASSES, MaskSet
from fastfss.errors import expected

_Number = TypeVar("_Number")
_Loaded = TypeVar("_Loaded")

_VERSION = 1
_MIB = 1 << 20
# Items begin where pages do, and so does the first.
_ALIGNMENT = 4096


class CachedImages(MaskSet):
    """A set whose images and masks are decoded once, by whichever process comes first.

    What is read is equal to what the set itself gives, resized as said, whether it was in the cache
    or not. Items that find no room, in the set's order, are decoded every time.

    The cache lies in memory, where processes that are forked share it (spawned ones have one each),
    or in a file below ``path``, which outlives the process and may be larger than memory. Each item
    carries a sum over its pixels, which every process checks once: an item that a killed process
    left half-written is decoded again. A file for other images, other sizes or other contents has
    another name.

    Args:
        images: the set.
        size: side of the square, or (height, width), to which images and masks are brought, the
            aspect lost; None leaves them as they are.
        memory_mib: room in memory.
        path: a folder for a file instead.
        limit_mib: room of the file; by default what is needed.
        mask_resize: see `fastfss.data.resizing.resize_maps`. Images are resized by Pillow, bilinear
            and antialiased.

    Raises:
        ValueError: neither or both places, or a size or room that is none.
        OSError: the file cannot be made.

    Examples:
        ``CachedImages(open_set("pascal", root, "train"), 473, path="cache")``
    """

    def __init__(
        self,
        images: MaskSet,
        size: int | tuple[int, int] | None = None,
        *,
        memory_mib: int | None = None,
        path: str | os.PathLike[str] | None = None,
        limit_mib: int | None = None,
        mask_resize: MaskResize = "torch",
    ) -> None:
        if (memory_mib is None) == (path is None):
            raise expected("memory_mib, path", "one of them", "both" if path else "neither")
        for name, room in (("memory_mib", memory_mib), ("limit_mib", limit_mib)):
            if room is not None and room < 1:
                raise expected(name, "at least 1", str(room))
        if mask_resize not in get_args(MaskResize):
            raise expected("mask_resize", "torch or pillow", repr(mask_resize))
        self.images = images
        self.size = (size, size) if isinstance(size, int) else size
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise expected("size", "None, a side or (height, width)", str(size))
        self.mask_resize = mask_resize
        self.name, self.root, self.classes = images.name, images.root, images.classes
        self.items, self.ignores, self.overlaps = images.items, images.ignores, images.overlaps
        # One plane of labels says all, where no pixel has two classes and uint8 is wide enough.
        self._in_labels = not images.overlaps and max(images.classes) <= MOST_CLASSES
        self._folder = None if path is None else Path(path)
        room_mib = memory_mib if path is None else limit_mib
        self._places, total = self._lay_out(None if room_mib is None else room_mib * _MIB)
        if self._folder is None:
            self._store: _Store = _MemoryStore(total, len(self.items))
        else:
            self._store = _open_file(self._folder, self._key(total), total, len(self.items))

    def image(self, number: int) -> Tensor:
        """The image of an item: uint8 (3, H, W) at the cache's size, in memory of its own."""
        if self._places[number] is None:
            return self._decoded_image(number)
        return torch.from_numpy(self._planes(number)[:3].copy())

    def labels(self, number: int) -> Tensor:
        """The mask of an item as `MaskSet.labels`, at the cache's size."""
        if self._places[number] is None or not self._in_labels:
            return self._resized_map(self.images.labels(number))
        return torch.from_numpy(self._planes(number)[3].copy())

    def mask(self, number: int, cls: int) -> Tensor:
        """The mask of one class of an item, at the cache's size."""
        self.check_class(cls)
        if self._places[number] is None:
            return self._resized_map(self.images.mask(number, cls))
        if self._in_labels:
            labels = self._planes(number)[3]
            mask = (labels == cls).astype(np.uint8)
            if self.ignores:
                mask[labels == IGNORED] = IGNORED
            return torch.from_numpy(mask)
        own = sorted(self.items[number].pixels)
        if cls not in own:
            return self._resized_map(self.images.mask(number, cls))
        return torch.from_numpy(self._planes(number)[3 + own.index(cls)].copy())

    def offers(self, number: int, cls: int) -> bool:
        """As the set itself."""
        return self.images.offers(number, cls)

    @property
    def digest(self) -> str:
        """The set's own: what decides episodes is not changed."""
        return self.images.digest

    @property
    def room(self) -> tuple[int, int]:
        """How many items have room in the cache, and how many there are."""
        return sum(place is not None for place in self._places), len(self.items)

    def fill(self, progress: Progress | None = None, threads: int | None = None) -> None:
        """Decode all items that have room and are not there yet.

        Args:
            progress: called with the number of items that are done, and of all.
            threads: by default one a core.
        """
        wanted = [number for number, place in enumerate(self._places) if place is not None]
        for done, _ in enumerate(in_order(self._planes, wanted, threads=threads), start=1):
            if progress is not None:
                progress(done, len(wanted))

    def _planes(self, number: int) -> npt.NDArray[np.uint8]:
        """(3 + M, H, W): the image, and the labels or the mask of each class."""
        place = self._places[number]
        assert place is not None
        start, shape = place
        kept = self._store.get(number, start, shape)
        if kept is None:
            kept = self._decode(number)
            self._store.put(number, start, kept)
        return kept

    def _decode(self, number: int) -> npt.NDArray[np.uint8]:
        image = self._decoded_image(number)
        if self._in_labels:
            maps = [self.images.labels(number)]
        else:
            own = sorted(self.items[number].pixels)
            maps = [self.images.mask(number, cls) for cls in own]
        resized = (self._resized_map(one)[None] for one in maps)
        planes: npt.NDArray[np.uint8] = torch.cat([image, *resized]).numpy()
        return planes

    def _decoded_image(self, number: int) -> Tensor:
        image = self.images.image(number)
        return image if self.size is None else resize_image(image, self.size)

    def _resized_map(self, labels: Tensor) -> Tensor:
        if self.size is None:
            return labels
        return resize_maps(labels[None], self.size, self.mask_resize)[0]

    def _lay_out(self, room: int | None) -> tuple[list[tuple[int, tuple[int, ...]] | None], int]:
        """Where each item lies and its shape, None without room; and how many bytes that is."""
        places: list[tuple[int, tuple[int, ...]] | None] = []
        start = 0
        for item in self.items:
            size = self.size or item.size
            if size is None:
                places.append(None)
                continue
            maps = 1 if self._in_labels else len(item.pixels)
            shape = (3 + maps, *size)
            length = -(-int(np.prod(shape)) // _ALIGNMENT) * _ALIGNMENT
            if room is not None and start + length > room:
                places.append(None)
                continue
            places.append((start, shape))
            start += length
        return places, start

    def _key(self, total: int) -> str:
        """A name for what the file holds."""
        content = hashlib.sha256()
        facts = (_VERSION, self.digest, self.size, self.mask_resize, self._in_labels, total)
        content.update(json.dumps(facts).encode())
        for item in self.items:
            for path in (item.image, item.mask):
                status = path.stat()
                content.update(f"{status.st_size} {status.st_mtime_ns}\n".encode())
        return content.hexdigest()[:32]


def in_order(
    load: Callable[[_Number], _Loaded],
    numbers: Iterable[_Number],
    *,
    threads: int | None = None,
    ahead: int = 8,
) -> Iterator[_Loaded]:
    """Load on several threads, and yield in order.

    Decoding, resizing and copying leave Python's lock to the other threads.

    Args:
        load: loads one; its error is raised where its result would come.
        numbers: what to load.
        threads: how many work; by default one a core.
        ahead: how many results wait at most, a thread.

    Examples:
        >>> list(in_order(lambda n: n * n, range(4), threads=2))
        [0, 1, 4, 9]
    """
    threads = threads or os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[_Loaded]] = deque()
        try:
            for number in numbers:
                waiting.append(pool.submit(load, number))
                if len(waiting) > ahead * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


class _Store:
    """Items by their places, each with a sum over its bytes; 0 stands for an item not there."""

    def __init__(self, buffer: mmap.mmap, count: int) -> None:
        self._start = _data_start(count)
        self._sums = np.frombuffer(buffer, dtype=np.uint32, count=count)
        self._buffer = buffer
        self._checked = np.zeros(count, dtype=bool)  # by this process

    def get(self, number: int, start: int, shape: tuple[int, ...]) -> npt.NDArray[np.uint8] | None:
        """An item's planes, where they are whole; read only."""
        total = int(self._sums[number])
        if total == 0:
            return None
        planes = np.frombuffer(
            self._buffer, np.uint8, count=int(np.prod(shape)), offset=self._start + start
        ).reshape(shape)
        planes.flags.writeable = False
        if not self._checked[number]:
            if _sum(planes) != total:
                return None
            self._checked[number] = True
        return planes

    def put(self, number: int, start: int, planes: npt.NDArray[np.uint8]) -> None:
        """Keep an item: its bytes first, then its sum."""
        self._write(self._start + start, planes.tobytes())
        self._write(4 * number, np.uint32(_sum(planes)).tobytes())

    def _write(self, place: int, content: bytes) -> None:
        raise NotImplementedError


class _MemoryStore(_Store):
    def __init__(self, total: int, count: int) -> None:
        self._room = (total, count)
        # Anonymous: forked processes share it, whatever the size of /dev/shm, and pages that
        # nothing was written to take no memory.
        super().__init__(mmap.mmap(-1, _data_start(count) + total), count)

    def _write(self, place: int, content: bytes) -> None:
        self._buffer[place : place + len(content)] = content

    def __reduce__(self) -> tuple[Any, ...]:
        return _MemoryStore, self._room


class _FileStore(_Store):
    def __init__(self, path: Path, count: int) -> None:
        self._path, self._count = path, count
        with path.open("rb") as file:
            super().__init__(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), count)

    def _write(self, place: int, content: bytes) -> None:
        # Not through the map: on a full disk that is a signal which ends the process, and this is
        # an error. An item that cannot be kept is decoded again.
        with suppress(OSError), self._path.open("r+b", buffering=0) as file:
            file.seek(place)
            file.write(content)

    def __reduce__(self) -> tuple[Any, ...]:
        return _FileStore, (self._path, self._count)


def _open_file(folder: Path, key: str, total: int, count: int) -> _FileStore:
    path = folder / f"images-{key}.bin"
    length = _data_start(count) + total
    if not path.exists() or path.stat().st_size != length:
        folder.mkdir(parents=True, exist_ok=True)
        # Full of holes at first: a file takes the disk that its items take.
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            file.truncate(length)
    return _FileStore(path, count)


def _data_start(count: int) -> int:
    """Where items begin, after the sums; a map has at least one page."""
    return -(-max(4 * count, 1) // _ALIGNMENT) * _ALIGNMENT


def _sum(planes: npt.NDArray[np.uint8]) -> int:
    """A sum over the bytes that is never 0."""
    return zlib.crc32(np.ascontiguousarray(planes).data) or 1
