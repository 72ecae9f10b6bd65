"""Maps of a frozen encoder, computed once and kept in memory-mapped files.

A head then trains without running the encoder at all. That is sound only where an image always
becomes the same: brought to one size, as it is or mirrored. A map of a random cut would serve once,
so recipes that cut at random are refused.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from fastfss.atomic import write_text_atomically
from fastfss.data.resizing import resize_image
from fastfss.data.sets import MaskSet
from fastfss.encoders import Encoder
from fastfss.encoders.base import StagedEncoder
from fastfss.errors import expected, expected_kind
from fastfss.methods import FewShotSegmenter

FORMAT = "fastfss-maps-1"
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
_GIB = 1 << 30
_BATCH = 8  # images that are encoded, and then reach the disk, together


class FeatureCache:
    """The maps of images by their numbers in a set; see `build_cache`.

    Attributes:
        folder: where the files are.
    """

    def __init__(
        self,
        folder: Path,
        numbers: Sequence[int],
        shapes: dict[str, tuple[int, int, int]],
        views: int,
        dtype: torch.dtype,
    ) -> None:
        self.folder = folder
        self.slots = {number: slot for slot, number in enumerate(numbers)}
        self.shapes = shapes
        self.views = views
        self.dtype = dtype
        self._open: dict[str, Tensor] = {}

    @property
    def nbytes(self) -> int:
        """The size of all maps."""
        values = sum(c * h * w for c, h, w in self.shapes.values())
        return values * self.views * len(self.slots) * self.dtype.itemsize

    def maps(self, number: int, *, mirrored: bool = False) -> dict[str, Tensor]:
        """The maps (C, h, w) of one image, in the dtype in which they are kept.

        Raises:
            ValueError: an image or a view that was not asked for when the cache was built.
        """
        if number not in self.slots or mirrored >= self.views:
            came = f"image {number}, {'mirrored' if mirrored else 'as it is'}"
            raise expected("number", f"an image of this cache, of {self.views} views", came)
        slot = self.slots[number] * self.views + mirrored
        return {name: self.file(name)[slot] for name in self.shapes}

    def file(self, name: str) -> Tensor:
        """A layer's maps (images x views, C, h, w), mapped into memory."""
        if name not in self._open:
            shape = (len(self.slots) * self.views, *self.shapes[name])
            path = str(self.folder / f"{name}.bin")
            size = torch.Size(shape).numel()
            flat = torch.from_file(path, shared=True, size=size, dtype=self.dtype)
            self._open[name] = flat.view(shape)
        return self._open[name]

    @property
    def done(self) -> Tensor:
        """uint8 (images,): which images are encoded."""
        path = str(self.folder / "done.bin")
        return torch.from_file(path, shared=True, size=len(self.slots), dtype=torch.uint8)

    def flush(self) -> None:
        """Have the disk hold what was written, the maps before the note that they are there."""
        for name in (*self.shapes, "done"):
            with (self.folder / f"{name}.bin").open("r+b") as file:
                os.fsync(file.fileno())

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_open": {}}  # a loader process maps the files for itself


def build_cache(
    model: FewShotSegmenter,
    images: MaskSet,
    numbers: Sequence[int],
    *,
    size: int,
    folder: Path,
    mirrored: bool = False,
    dtype: str = "fp16",
    limit_gib: float = 20.0,
    share: tuple[int, int] = (0, 1),
    progress: Callable[[int, int], None] | None = None,
) -> FeatureCache:
    """Compute what is missing of a frozen encoder's maps.

    The cache has a folder of its own below `folder`, named after the encoder's weights, the layers,
    the size and the set, so another model or set never meets wrong maps. After a kill it goes on
    with the images that are missing.

    Args:
        model: its `layers` of its encoder are kept; on the device on which to compute.
        images: the set.
        numbers: the images to keep, of the set.
        size: pixels of both sides to which images are brought.
        folder: where caches lie; made if need be.
        mirrored: whether each image is also kept mirrored.
        dtype: "fp16", "bf16" or "fp32"; of what is kept.
        limit_gib: what it may take of the disk.
        share: (rank, processes): this process encodes images rank, rank + processes, ...
        progress: called with the images that are done and all.

    Raises:
        ValueError: an encoder that is trained, or more bytes than the limit or the disk has.
    """
    check_frozen(model)
    if dtype not in DTYPES:
        raise expected("dtype", f"one of {', '.join(DTYPES)}", repr(dtype))
    probe = _encode(model, _framed(images, numbers[:1], size))
    shapes = {name: (m.shape[1], m.shape[2], m.shape[3]) for name, m in probe.items()}
    views = 2 if mirrored else 1
    about = {
        "format": FORMAT,
        "encoder": model.encoder.name,
        "weights": _digest(model.encoder),
        "layers": list(model.layers),
        "shapes": {name: list(shape) for name, shape in shapes.items()},
        "size": size,
        "views": views,
        "dtype": dtype,
        "set": images.digest,
        "images": hashlib.sha256(json.dumps(list(numbers)).encode()).hexdigest(),
    }
    text = json.dumps(about, indent=2, sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    cache = FeatureCache(folder / key, numbers, shapes, views, DTYPES[dtype])
    if not (cache.folder / "about.json").is_file():
        _check_room(cache.nbytes, folder, limit_gib)
        cache.folder.mkdir(parents=True, exist_ok=True)
        _ = cache.done, [cache.file(name) for name in shapes]  # makes the files, of zeros
        write_text_atomically(cache.folder / "about.json", text)
    done, before = cache.done, 0
    missing = [n for n in list(numbers)[share[0] :: share[1]] if not done[cache.slots[n]]]
    for start in range(0, len(missing), _BATCH):
        part = missing[start : start + _BATCH]
        framed = _framed(images, part, size)
        for view in range(views):
            for name, maps in _encode(model, framed.flip(-1) if view else framed).items():
                slots = [cache.slots[number] * views + view for number in part]
                cache.file(name)[slots] = maps.to("cpu", cache.dtype)
        cache.flush()
        done[[cache.slots[number] for number in part]] = 1
        before += len(part)
        if progress is not None:
            progress(before, len(missing))
    cache.flush()
    return cache


def check_frozen(model: FewShotSegmenter) -> None:
    """ValueError unless the encoder gives the same maps throughout the training."""
    trained = sum(p.requires_grad for p in model.encoder.parameters())
    if trained:
        came = f"{model.method}, which trains {trained} tensors of its encoder"
        raise expected("cache.maps", '"off", or a method whose encoder is frozen', came)
    if model.encoder.batch_statistics:
        wanted = '"off", or model.options.batch_statistics = false'
        came = "an encoder whose batch norms follow the batch"
        raise expected("cache.maps", wanted, came)


class CachedEncoder(StagedEncoder):
    """Stands in for an encoder during training: gives the maps of a batch, by their rows.

    An image is a tensor (3, H, W) that holds its row in every pixel, so that a method's forward
    runs as it is, in whatever order it encodes its images.
    """

    def __init__(self, inner: Encoder) -> None:
        super().__init__(inner.name, inner.features, inner.normalization, stages={})
        # In a list, lest its parameters count as this module's.
        self._inner = [inner]
        self._maps: dict[str, Tensor] = {}

    @property
    def inner(self) -> Encoder:
        """The encoder itself."""
        return self._inner[0]

    def serve(self, maps: dict[str, Tensor] | None) -> None:
        """Take the maps of the next batch, name -> (rows, C, h, w)."""
        if maps is None:
            raise expected("maps", "a batch of a feature cache", "one of images")
        self._maps = maps

    def forward(self, images: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        """See Encoder.forward."""
        rows = images[:, 0, 0, 0].long()
        wanted = list(self._maps) if names is None else names
        return {name: self._maps[name][rows].to(images.dtype) for name in wanted}

    def resume(self, features: Tensor, after: str, until: str) -> Tensor:
        """See StagedEncoder.resume; this part is computed."""
        if not isinstance(self.inner, StagedEncoder):
            came = f"{self.name}, which computes all maps from images"
            raise expected_kind("encoder", "one that runs stage by stage", came)
        return self.inner.resume(features, after, until)


@contextmanager
def uncached(model: FewShotSegmenter) -> Iterator[None]:
    """The model with its encoder itself, to validate or save it."""
    encoder = model.encoder
    if not isinstance(encoder, CachedEncoder):
        yield
        return
    model.encoder = encoder.inner
    try:
        yield
    finally:
        model.encoder = encoder


def _framed(images: MaskSet, numbers: Sequence[int], size: int) -> Tensor:
    """uint8 (N, 3, size, size), as training brings images to the size."""
    return torch.stack([resize_image(images.image(number), (size, size)) for number in numbers])


@torch.no_grad()
def _encode(model: FewShotSegmenter, images: Tensor) -> dict[str, Tensor]:
    encoder, training = model.encoder, model.encoder.training
    batch = encoder.normalization.apply(images.to(model.device).float() / 255)
    try:
        maps: dict[str, Tensor] = encoder.eval()(batch, model.layers)
    finally:
        encoder.train(training)
    return maps


def _check_room(nbytes: int, folder: Path, limit_gib: float) -> None:
    wanted = f"{nbytes / _GIB:.2f} GiB for the maps"
    if nbytes > limit_gib * _GIB:
        raise expected("cache.limit_gib", f"at least {wanted}", f"{limit_gib:g}")
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if nbytes > free:
        raise expected("cache.folder", f"a disk with {wanted}", f"{free / _GIB:.2f} GiB free")


def _digest(encoder: Encoder) -> str:
    digest = hashlib.sha256()
    for name, tensor in encoder.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
