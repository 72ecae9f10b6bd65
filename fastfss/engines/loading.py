"""Engines by name, and engine folders read."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import torch

from fastfss.engines.base import Engine
from fastfss.engines.manifest import Manifest
from fastfss.engines.meanwhile import MeanwhileEngine
from fastfss.engines.mixed import MixedEngine
from fastfss.errors import expected

# Backend -> module and class: a module is loaded where its backend is asked for, because each
# needs a library of its own.
BACKENDS: dict[str, tuple[str, str]] = {
    "eager": ("fastfss.engines.in_torch", "EagerEngine"),
    "torch-compile": ("fastfss.engines.in_torch", "CompiledEngine"),
    "cuda-graph": ("fastfss.engines.in_torch", "CudaGraphEngine"),
    "onnxruntime": ("fastfss.engines.onnx_runtime", "OnnxRuntimeEngine"),
    "openvino": ("fastfss.engines.openvino_runtime", "OpenVinoEngine"),
    "tensorrt": ("fastfss.engines.tensorrt.engine", "TensorRTEngine"),
    "tensorrt-rtx": ("fastfss.engines.tensorrt.engine", "TensorRTForRTXEngine"),
}


def load(
    path: str | Path,
    backend: str = "auto",
    *,
    device: str | torch.device = "cpu",
    wait: bool = True,
) -> Engine:
    """Load an engine folder of `fastfss export`.

    Args:
        path: the folder.
        backend: one of `list_backends()`; two of them with a plus for the two graphs, such as
            "openvino+eager"; or "auto": the fastest here of those that are installed, measured
            once and remembered beside the folder's manifest.
        device: "cpu" or "cuda".
        wait: for a backend whose first load takes minutes (TensorRT builds). Else eager PyTorch
            serves until it is made; `engine.notes` says which it is.

    Returns:
        The engine; `engine.stats()` says which it is and, of "auto", why.

    Raises:
        FileNotFoundError: no engine folder there.
        EngineError: a truncated graph, or one that is not the manifest's.
        ValueError: no such backend.
        NotImplementedError: the backend cannot serve the folder here; the message says why.

    Examples:
        engine = fastfss.engines.load("engine")
        result = engine.predict("photo.jpg", Task.load("cow.safetensors"))
    """
    folder = Path(path)
    where = torch.device(device)
    if backend == "auto":
        from fastfss.engines.choice import choose

        return choose(folder, Manifest.read(folder), where)
    for one in backend.split("+", 1):
        backend_class(one)
    started = time.perf_counter()
    manifest = Manifest.read(folder)
    reading = time.perf_counter() - started
    if not wait and "+" not in backend and _starts_slowly(backend, folder, manifest, where):
        engine: Engine = MeanwhileEngine(
            load_backend("eager", folder, manifest, where),
            lambda: load_backend(backend, folder, manifest, where),
            backend,
        )
    else:
        engine = load_backend(backend, folder, manifest, where)
    engine.load_seconds += reading
    return engine


def _starts_slowly(backend: str, folder: Path, manifest: Manifest, device: torch.device) -> bool:
    kind = backend_class(backend)
    if kind.why_not(manifest, device) is not None:
        return False
    return kind.slow_start(folder, manifest, device) is not None


def load_backend(backend: str, folder: Path, manifest: Manifest, device: torch.device) -> Engine:
    """Load a folder whose manifest is read already; see `load`, but for "auto"."""
    first, plus, second = backend.partition("+")
    if plus:
        return MixedEngine(
            load_backend(first, folder, manifest, device),
            load_backend(second, folder, manifest, device),
        )
    kind = backend_class(backend)
    if (reason := kind.why_not(manifest, device)) is not None:
        raise NotImplementedError(f"backend {backend!r} cannot serve {folder}: {reason}")
    started = time.perf_counter()
    engine = kind(folder, manifest, device)
    engine.load_seconds = time.perf_counter() - started
    return engine


def list_backends() -> list[str]:
    """The names that `load` takes, besides "auto"."""
    return list(BACKENDS)


def backend_class(backend: str) -> type[Engine]:
    """The Engine of a name.

    Raises:
        ValueError: no such backend.
    """
    if backend not in BACKENDS:
        raise expected("backend", f"auto or one of {', '.join(BACKENDS)}", repr(backend))
    module, name = BACKENDS[backend]
    kind: type[Engine] = getattr(importlib.import_module(module), name)
    return kind
