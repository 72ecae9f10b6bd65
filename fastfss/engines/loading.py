"""Engines by name, and engine folders read."""

from __future__ import annotations

import importlib
import time
from pathlib import Path

import torch

from fastfss.engines.base import Engine
from fastfss.engines.manifest import Manifest
from fastfss.errors import expected

# Backend -> module and class: a module is loaded where its backend is asked for, because each
# needs a library of its own.
BACKENDS: dict[str, tuple[str, str]] = {
    "eager": ("fastfss.engines.in_torch", "EagerEngine"),
    "torch-compile": ("fastfss.engines.in_torch", "CompiledEngine"),
    "cuda-graph": ("fastfss.engines.in_torch", "CudaGraphEngine"),
    "onnxruntime": ("fastfss.engines.onnx_runtime", "OnnxRuntimeEngine"),
    "openvino": ("fastfss.engines.openvino_runtime", "OpenVinoEngine"),
}


def load(path: str | Path, backend: str = "auto", *, device: str | torch.device = "cpu") -> Engine:
    """Load an engine folder of `fastfss export`.

    Args:
        path: the folder.
        backend: one of `list_backends()`, or "auto": the fastest here of those that are installed,
            measured once and remembered beside the folder's manifest.
        device: "cpu" or "cuda".

    Returns:
        The engine; `engine.stats()` says which it is and, of "auto", why.

    Raises:
        FileNotFoundError: no engine folder there.
        EngineError: a truncated graph, or one that is not the manifest's.
        ValueError: no such backend.
        NotImplementedError: the backend cannot serve the folder here; the message says why.

    Example:
        engine = fastfss.engines.load("engine")
        result = engine.predict("photo.jpg", Task.load("cow.safetensors"))
    """
    folder = Path(path)
    where = torch.device(device)
    if backend == "auto":
        from fastfss.engines.choice import choose

        return choose(folder, Manifest.read(folder), where)
    kind = backend_class(backend)
    started = time.perf_counter()
    manifest = Manifest.read(folder)
    if (reason := kind.why_not(manifest, where)) is not None:
        raise NotImplementedError(f"backend {backend!r} cannot serve {folder}: {reason}")
    engine = kind(folder, manifest, where)
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
