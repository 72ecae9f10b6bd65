"""What an engine folder says of itself: the method, the graphs, their tensors, their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from fastfss.atomic import write_text_atomically
from fastfss.encoders import Encoder
from fastfss.encoders.base import Normalization
from fastfss.engines.manifest_json import built
from fastfss.errors import expected
from fastfss.methods.frames import Frame, FrameSize
from fastfss.methods.guided_parts import Grid
from fastfss.reading import read_json
from fastfss.task import Task

FORMAT = "fastfss-engine-1"
MANIFEST = "manifest.json"
ENCODE, MATCH, WEIGHTS = "encode.onnx", "match.onnx", "model.safetensors"

Precision = Literal["fp32", "fp16", "bf16", "int8"]
"""The number format of an export's encoder."""
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
# A side of an image or map: pixels or positions, or a name where it is free ("height").
Side = int | str
Option = bool | int | float | str | Sequence[float]
Margins = Literal["background", "largest other"]


class EngineError(ValueError):
    """An engine folder is damaged, or does not fit what is asked of it."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that goes into a graph or comes out of it.

    Attributes:
        name: in the graph.
        shape: numbers, or names where a side is free.
        dtype: "float32".
    """

    name: str
    shape: tuple[Side, ...]
    dtype: str = "float32"

    @staticmethod
    def of(name: str, tensor: Tensor) -> TensorSpec:
        """The spec of a tensor as it is."""
        return TensorSpec(name, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    @property
    def torch_dtype(self) -> torch.dtype:
        """As torch calls it."""
        found = getattr(torch, self.dtype)
        assert isinstance(found, torch.dtype)
        return found

    def fits(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of the shape can be this one."""
        return len(shape) == len(self.shape) and all(
            isinstance(own, str) or own == side for own, side in zip(self.shape, shape, strict=True)
        )

    def __str__(self) -> str:
        return f"{self.name} {self.dtype} ({', '.join(map(str, self.shape))})"


@dataclass(frozen=True)
class GraphSpec:
    """One of the two graphs.

    Attributes:
        file: its name in the folder.
        sha256: of the file.
        inputs, outputs: in the graph's order.
    """

    file: str
    sha256: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Preprocessing:
    """From an image to the tensor `images` of the encode graph.

    Attributes:
        frame: how an image is brought to its size: "aspect", "square" or "letterbox".
        size: pixels of the longer side, or of both; or height and width, to which it is stretched;
            None keeps it as it is. See `fastfss.methods.frames`.
        mean, std, scale, bgr: see `fastfss.encoders.Normalization`.
    """

    frame: Frame
    size: FrameSize
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1.0
    bgr: bool = False

    @property
    def normalization(self) -> Normalization:
        """What is applied to pixels in [0, 1]."""
        return Normalization(self.mean, self.std, self.scale, self.bgr)

    @staticmethod
    def of(frame: Frame, size: FrameSize, encoder: Encoder) -> Preprocessing:
        """That of a model."""
        norm = encoder.normalization
        return Preprocessing(frame, size, norm.mean, norm.std, norm.scale, norm.bgr)


@dataclass(frozen=True)
class Output:
    """From the match graph's `logits` to masks.

    Attributes:
        on_grid: whether the logits are on the method's own grid, and only enlarged to become its
            result; else they are of the images' size.
        align_corners: of that bilinear enlargement.
        stride, fades: of the enlargement that guided networks have instead, see
            `fastfss.methods.guided_parts.Grid`; stride 0 stands for the bilinear one.
        margins: a way's margin is its logit minus the background's, or minus the largest other.
    """

    on_grid: bool
    align_corners: bool
    stride: int
    fades: bool
    margins: Margins

    def enlarged(self, logits: Tensor, image: tuple[int, int], size: tuple[int, int]) -> Tensor:
        """The match graph's logits at another size.

        Args:
            logits: (1, N + 1, h, w).
            image: height and width of what was encoded.
            size: height and width wanted.
        """
        if self.on_grid and self.stride:
            return Grid(self.stride, self.fades).decode(logits, image, size)
        if logits.shape[-2:] == size:
            return logits
        corners = self.on_grid and self.align_corners
        return F.interpolate(logits, size, mode="bilinear", align_corners=corners)


@dataclass(frozen=True)
class Check:
    """What the export found: graphs in ONNX Runtime against eager PyTorch, both on the CPU.

    Attributes:
        encode: of all maps the largest relative error, norm of the difference by norm.
        match: of the logits, largest difference by largest magnitude, of the same maps; the median
            over the images.
        agreement: pixels, in percent, whose label both graphs together give as eager float32.
        images: how many were compared.
        foreground: pixels, in percent, that eager float32 put into any way. Where they are none or
            all, as with random weights, the agreement says nothing.
    """

    encode: float
    match: float
    agreement: float
    images: int
    foreground: float

    def __str__(self) -> str:
        return (
            f"encode {self.encode:.1e}, match {self.match:.1e} relative to eager float32; "
            f"{self.agreement:.3f} % of pixels alike, {self.foreground:.1f} % of them foreground"
        )


@dataclass(frozen=True)
class Cost:
    """What a low precision costs on annotated images.

    Attributes:
        exact, low: mIoU in percent of eager float32, and of the graphs.
        classes, images: how many.
    """

    exact: float
    low: float
    classes: int
    images: int

    @property
    def points(self) -> float:
        """Points of mIoU that the precision costs."""
        return self.exact - self.low


@dataclass(frozen=True)
class Manifest:
    """An engine folder's manifest.json.

    Attributes:
        method: the method's name.
        settings: what a Task must have been made with: encoder, layers, weights.
        options: the method's own, as given to create_model.
        encode, match: the graphs.
        shots, ways: of the match graph.
        image_size: height and width, or names where they are free.
        task: a Task's tensors, (1, shots, ...) each.
        preprocessing, output: what lies before and behind the graphs.
        precision: of the encode graph's arithmetic; the match graph's is float32.
        check: how well the graphs equal eager PyTorch.
        cost: of the precision, where annotated images were given.
        weights_sha256: of the weights beside the graphs, from which PyTorch's engines are made.
        versions: of fastfss, torch, onnx, onnxscript, and the operator set.
    """

    method: str
    settings: Mapping[str, str]
    options: Mapping[str, Option]
    encode: GraphSpec
    match: GraphSpec
    shots: int
    ways: int
    image_size: tuple[Side, Side]
    task: tuple[TensorSpec, ...]
    preprocessing: Preprocessing
    output: Output
    precision: Precision
    check: Check
    cost: Cost | None
    weights_sha256: str
    versions: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        def listed(specs: Sequence[TensorSpec]) -> str:
            return ", ".join(map(str, specs))

        before, cost = self.preprocessing, self.cost
        known = "not measured" if cost is None else f"{cost.points:+.2f} points of mIoU"
        lines = [
            f"{self.method} of {self.settings['encoder']}, layers {self.settings['layers']}, "
            f"weights {self.settings['weights']}",
            f"  images: {' x '.join(map(str, self.image_size))}, frame {before.frame}",
            f"  {self.shots} shots, {self.ways} ways; a task: {listed(self.task)}",
            f"  maps: {listed(self.maps)}",
            f"  logits: {listed(self.match.outputs)}",
            f"  precision: {self.precision}"
            + ("" if self.precision == "fp32" else f", which costs {known}"),
            f"  self-check: {self.check}",
            f"  made by {', '.join(f'{name} {one}' for name, one in self.versions.items())}",
        ]
        return "\n".join(lines)

    @property
    def dynamic(self) -> bool:
        """Whether images may have any size."""
        return not all(isinstance(side, int) for side in self.image_size)

    @property
    def maps(self) -> tuple[TensorSpec, ...]:
        """What the encode graph makes."""
        return self.encode.outputs

    @property
    def digest(self) -> str:
        """One digest of both graphs: the key of what is built from them."""
        return hashlib.sha256(f"{self.encode.sha256}{self.match.sha256}".encode()).hexdigest()

    def fixed_size(self) -> tuple[int, int]:
        """Height and width.

        Raises:
            EngineError: they are free.
        """
        height, width = self.image_size
        if not (isinstance(height, int) and isinstance(width, int)):
            raise EngineError("image_size: this engine takes images of any size, and has none")
        return height, width

    def check_task(self, task: Task) -> None:
        """Raise ValueError unless a task was made with this method, encoder and weights."""
        task.check_settings(self.method, self.settings, argument="task")
        self.check_tensors(task)

    def check_tensors(self, task: Task) -> None:
        """Raise ValueError unless a task has the method, the tensors and a fitting number of shots.

        The settings of a task of `encode_support` are empty, so this is all that can be asked.
        """
        if task.method != self.method:
            raise expected("task", f"a task of method {self.method!r}", f"one of {task.method!r}")
        if task.batch != 1 or self.shots % task.shots:
            fitting = [str(n) for n in range(1, self.shots + 1) if self.shots % n == 0]
            wanted = f"a task of {' or '.join(fitting)} shots, as the engine was exported"
            raise expected("task", wanted, f"batch {task.batch}, {task.shots} shots")
        for spec in self.task:
            tensor = task.tensors.get(spec.name)
            if tensor is None or not spec.fits((1, self.shots, *tensor.shape[2:])):
                came = "none" if tensor is None else str(tuple(tensor.shape))
                raise expected("task", f"a tensor {spec}", came)

    def write(self, folder: Path) -> None:
        """Write manifest.json."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, indent=1)
        write_text_atomically(folder / MANIFEST, text + "\n")

    @staticmethod
    def read(folder: str | Path, *, digests: bool = True) -> Manifest:
        """Read a folder's manifest.

        Args:
            folder: of `fastfss export`.
            digests: whether to make sure that the graphs are those that the manifest is of.

        Raises:
            FileNotFoundError: no folder, manifest or graph there.
            EngineError: another kind of file, or a graph that is truncated or another.
        """
        folder = Path(folder)
        path = folder / MANIFEST
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder}: expected an engine folder of fastfss export, found no {MANIFEST}"
            )
        try:
            found = read_json(path, str(path))
            if not isinstance(found, dict) or found.pop("format", None) != FORMAT:
                raise EngineError(f"{path}: expected the manifest of an engine ({FORMAT})")
            manifest = built(Manifest, found)
            if fault := _fault(manifest):
                raise TypeError(fault)
        except EngineError:
            raise
        except (ValueError, KeyError, TypeError) as error:
            raise EngineError(f"{path}: damaged ({' '.join(str(error).split())})") from error
        if digests:
            for graph in (manifest.encode, manifest.match):
                check_digest(folder / graph.file, graph.sha256)
        return manifest


def check_digest(path: Path, wanted: str) -> None:
    """Raise unless a file of an engine folder is the one that its manifest is of.

    Raises:
        FileNotFoundError: it is not there.
        EngineError: it is another, or truncated.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: the engine's manifest names it, but there is no such file"
        )
    came = file_digest(path)
    if came != wanted:
        raise EngineError(
            f"{path}: truncated or another file: expected sha256 {wanted[:16]}..., as the manifest "
            f"says, got {came[:16]}...; export the engine again"
        )


def file_digest(path: Path) -> str:
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _fault(manifest: Manifest) -> str:
    """What is wrong with a manifest whose fields are of the right kinds; empty if nothing."""
    graphs = (manifest.encode, manifest.match)
    specs = [*manifest.task, *(spec for one in graphs for spec in (*one.inputs, *one.outputs))]
    for spec in specs:
        if not isinstance(getattr(torch, spec.dtype, None), torch.dtype):
            return f"{spec.name} of dtype {spec.dtype!r}"
    for graph in graphs:
        if graph.file != Path(graph.file).name:
            return f"a graph {graph.file!r}"
    for name, count in (("shots", manifest.shots), ("ways", manifest.ways)):
        if count < 1:
            return f"{count} {name}"
    missing = {"encoder", "layers", "weights"} - manifest.settings.keys()
    return f"settings without {', '.join(sorted(missing))}" if missing else ""
