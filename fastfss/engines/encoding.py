"""An encoder by what is fastest, while the rest of its model stays as it is.

On the CPU that is ONNX Runtime or OpenVINO, on an NVIDIA GPU CUDA graphs. An exported engine has
one size, number of shots and ways; this has images of any size, and the model's own tasks, clicks
and memories. The libraries' graph is made once for an encoder's weights, which takes some seconds,
and kept in the cache.
"""

from __future__ import annotations

import copy
import importlib.util
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TypeVar

import torch
from torch import Tensor

from fastfss.atomic import write_text_atomically
from fastfss.encoders import Encoder
from fastfss.engines import onnx_runtime, openvino_runtime
from fastfss.engines.choice import LIBRARIES, cpu_name, installed
from fastfss.engines.encoder_graphs import cached_graph, graph_path, why_no_export
from fastfss.engines.encoder_replays import EncoderReplays
from fastfss.errors import expected
from fastfss.methods import FewShotSegmenter

Model = TypeVar("Model", bound=FewShotSegmenter)
Compute = Callable[[Tensor], dict[str, Tensor]]
Report = Callable[[str], None]

ENCODER_BACKENDS = ("eager", "onnxruntime", "openvino", "cuda-graph")
_LIBRARIES = ("onnxruntime", "openvino")  # those of the CPU
WORTH = 0.9  # of PyTorch's time; a second copy of the weights is not worth less than a tenth
_TIMED = (256, 320)
_ROUNDS = 3


def accelerate(model: Model, backend: str = "auto", *, report: Report | None = None) -> Model:
    """A copy of a model whose encoder is run by what is fastest; the rest stays as it is.

    On a CPU that may be ONNX Runtime or OpenVINO; on an NVIDIA GPU, CUDA graphs of up to four
    shapes of images, captured when one comes again. Features are equal to about 1e-6 of their norm;
    tasks of the model serve the copy and the other way round. The copy shares the model's weights,
    which are not to change any more.

    Args:
        model: of `for_inference`. With "auto", one on the CPU that is not in float32 comes back as
            it is.
        backend: "auto", for the fastest here of those that are installed, on a CPU measured when an
            image first comes and remembered; or one of `ENCODER_BACKENDS`.
        report: told when something takes seconds; nobody by default.

    Returns:
        The copy. `copy.encoder.engine.why` says what was chosen and the times, after the first
        image.

    Raises:
        ValueError: no such backend, or a model whose weights want gradients.
        NotImplementedError: a backend that is not installed, or a model that it cannot run.

    Examples:
        model = fastfss.engines.accelerate(create_model("default").for_inference())
    """
    if backend not in ("auto", *ENCODER_BACKENDS):
        raise expected("backend", f"auto or one of {', '.join(ENCODER_BACKENDS)}", repr(backend))
    weights = list(model.encoder.parameters())
    if any(one.requires_grad for one in weights):
        raise expected("model", "one of for_inference()", "one whose weights want gradients")
    on_gpu = all(one.device.type == "cuda" for one in weights)
    plain = all(one.device.type == "cpu" and one.dtype == torch.float32 for one in weights)
    if backend == "eager" or (backend == "auto" and not (plain or on_gpu)):
        return model
    reason = None
    if backend == "cuda-graph" and not on_gpu:
        reason = f"it runs on an NVIDIA GPU, the model is on {model.device}"
    elif backend in _LIBRARIES:
        reason = _why_not(backend) if plain else "it runs float32 on the CPU here"
    if reason is not None:
        raise NotImplementedError(f"backend {backend!r}: {reason}")
    fast, encoder = copy.copy(model), copy.copy(model.encoder)
    encoder.engine = EncoderEngine(encoder, backend, report)
    fast._modules = {**model._modules, "encoder": encoder}
    fast._origin_fingerprint = model.fingerprint()
    return fast


class EncoderEngine:
    """What computes an encoder's maps; see `fastfss.encoders.base.MapEngine`.

    A graph has the maps that a method asks for together, and is made when it first does.

    Args:
        encoder: without gradients; in float32 on the CPU, or on a GPU.
        backend, report: as in `accelerate`.

    Attributes:
        chosen: the backend that computes the maps last asked for.
        why: why that one.
    """

    def __init__(self, encoder: Encoder, backend: str, report: Report | None) -> None:
        self.chosen = "eager"
        self.why = ""
        self._encoder = encoder
        self._backend = backend
        self._report = report or (lambda _: None)
        self._lock = Lock()
        self._computes: dict[tuple[str, ...], Compute | None] = {}
        self._replays = EncoderReplays(encoder)

    def __deepcopy__(self, memo: object) -> None:
        # A deep copy has weights of its own, and may train them.
        return None

    def maps(self, images: Tensor, names: tuple[str, ...]) -> dict[str, Tensor] | None:
        """See MapEngine: None for what no backend here serves."""
        if torch.compiler.is_compiling() or images.requires_grad:
            return None
        if torch.is_autocast_enabled(images.device.type):
            return None
        if images.is_cuda and self._backend in ("auto", "cuda-graph"):
            found = self._replays.maps(images, names)
            self.chosen = "eager" if found is None else "cuda-graph"
            eager = self._replays.why_not or "a shape's first images"
            self.why = eager if found is None else "one launch"
            return found
        if not images.is_cpu or images.dtype != torch.float32:
            return None
        with self._lock:
            if names not in self._computes:
                self._computes[names] = self._made(names)
            compute = self._computes[names]
        return None if compute is None else compute(images)

    def _made(self, names: tuple[str, ...]) -> Compute | None:
        """What computes these maps; None for the modules themselves."""
        self.chosen = "eager"
        path = graph_path(self._encoder, names)
        reasons = {backend: _why_not(backend) for backend in _LIBRARIES}
        wanted = [backend for backend, reason in reasons.items() if reason is None]
        missing = None if path.exists() else why_no_export()
        if self._backend == "auto" and (missing is not None or not wanted):
            self.why = "; ".join(one for one in (*reasons.values(), missing) if one is not None)
            return None
        try:
            graph = cached_graph(path, self._encoder, names, self._report)
            if self._backend == "auto":
                return self._fastest(path.with_suffix(".json"), graph, names, wanted)
            compute = _compute(self._backend, graph, names, self._encoder)
            self.chosen, self.why = self._backend, "as asked"
            return compute
        except Exception as error:  # the libraries have kinds of their own
            reason = f"the encoder's graph failed: {' '.join(str(error).split())[:200]}"
            if self._backend != "auto":
                raise NotImplementedError(f"backend {self._backend!r}: {reason}") from error
            self.why = reason
            return None

    def _fastest(
        self, trials: Path, graph: bytes, names: tuple[str, ...], wanted: Sequence[str]
    ) -> Compute | None:
        """The fastest, measured here once; PyTorch where others save less than a tenth."""
        key = _machine(wanted)
        known = _read_times(trials)
        seconds = known.get(key)
        made: dict[str, Compute] = {}
        if seconds is None:
            made = {b: _compute(b, graph, names, self._encoder) for b in wanted}
            eager: Compute = lambda x: self._encoder._compute(x, frozenset(names))  # noqa: E731
            seconds = _seconds({"eager": eager, **made}, self._encoder.inputs)
            with suppress(OSError):
                write_text_atomically(trials, json.dumps({**known, key: seconds}, indent=1))
        best = min(seconds, key=lambda name: seconds[name])
        if seconds[best] > WORTH * seconds["eager"]:
            best = "eager"
        times = ", ".join(f"{name} {1e3 * s:.3g} ms" for name, s in sorted(seconds.items()))
        self.why = f"the fastest here ({times} for {_TIMED[0]} x {_TIMED[1]} pixels)"
        self.chosen = best
        if best == "eager":
            return None
        return made.get(best) or _compute(best, graph, names, self._encoder)


def _compute(backend: str, graph: bytes, names: tuple[str, ...], encoder: Encoder) -> Compute:
    """A function of images that runs a graph."""
    weight = next(one for one in encoder.parameters() if one.ndim == 4)
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    order = torch.channels_last if last else torch.contiguous_format

    def ordered(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: one.contiguous(memory_format=order) for name, one in maps.items()}

    if backend == "onnxruntime":
        session = onnx_runtime.session(graph)
        return lambda images: ordered(onnx_runtime.run_by_name(session, {"images": images}, names))
    request = openvino_runtime.compiled(openvino_runtime.openvino_core(), graph, "f32")
    lock = Lock()  # a request runs one call at a time

    def compute(images: Tensor) -> dict[str, Tensor]:
        with lock:
            return ordered(openvino_runtime.run_by_name(request, {"images": images}, names))

    return compute


@torch.no_grad()
def _seconds(computes: Mapping[str, Compute], channels: int) -> dict[str, float]:
    """Of a call of each, the fastest of some, in turns."""
    images = torch.rand(1, channels, *_TIMED)
    times: dict[str, list[float]] = {name: [] for name in computes}
    for _ in range(1 + _ROUNDS):
        for name, compute in computes.items():
            started = time.perf_counter()
            compute(images)
            times[name].append(time.perf_counter() - started)
    return {name: min(some[1:]) for name, some in times.items()}


def _why_not(backend: str) -> str | None:
    """What a backend lacks."""
    extra = {"onnxruntime": "onnx", "openvino": "openvino"}[backend]
    if importlib.util.find_spec(backend) is None:
        return f'{backend} is not installed: pip install "fastfss[{extra}]"'
    return None


def _machine(backends: Sequence[str]) -> str:
    """Of everything that times depend on."""
    threads = f"{torch.get_num_threads()} threads"
    return "; ".join([cpu_name(), threads, *installed(LIBRARIES), *backends])


def _read_times(path: Path) -> dict[str, dict[str, float]]:
    """Machine -> backend -> seconds; nothing where the file is not there or cannot be read."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return {k: {name: float(t) for name, t in one.items()} for k, one in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
