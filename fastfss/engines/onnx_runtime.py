"""The two graphs in ONNX Runtime, on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastfss.engines.base import Engine
from fastfss.engines.manifest import GraphSpec, Manifest
from fastfss.errors import import_extra


class OnnxRuntimeEngine(Engine):
    """Both graphs by ONNX Runtime's CPU provider, with torch's number of threads."""

    backend: ClassVar[str] = "onnxruntime"

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        super().__init__(folder, manifest, device)
        self._sessions = [session(folder / g.file) for g in (manifest.encode, manifest.match)]

    @classmethod
    def why_not(cls, manifest: Manifest, device: torch.device) -> str | None:
        """What ONNX Runtime lacks."""
        if importlib.util.find_spec("onnxruntime") is None:
            return 'onnxruntime is not installed: pip install "fastfss[onnx]"'
        if device.type != "cpu":
            return f"it runs on the CPU here, not on {device}"
        if manifest.precision == "bf16":
            return "ONNX Runtime has no bfloat16 convolution on the CPU"
        return None

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        spec = self.manifest.encode
        return run(self._sessions[0], spec, {spec.inputs[0].name: images})

    def _match(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return run(self._sessions[1], self.manifest.match, inputs)


def session(graph: Path | bytes, *, quiet: bool = False) -> Any:
    """An InferenceSession of a file or of a model's bytes.

    Args:
        graph: the file or the bytes.
        quiet: whether an error is raised alone, and not printed besides.

    Raises:
        MissingExtraError: onnxruntime is not installed.
    """
    ort = import_extra("onnxruntime", extra="onnx", purpose="the engine of ONNX Runtime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Errors, or what ends the process; warnings are about its own optimiser.
    options.log_severity_level = 4 if quiet else 3
    source = str(graph) if isinstance(graph, Path) else graph
    return ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def run(session: Any, spec: GraphSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One call, of those tensors that the graph takes.

    Args:
        session: of `session`.
        spec: the graph.
        tensors: by name, on the CPU.
    """
    inputs = {one.name: tensors[one.name] for one in spec.inputs}
    return run_by_name(session, inputs, [one.name for one in spec.outputs])


def run_by_name(
    session: Any, inputs: Mapping[str, Tensor], outputs: Sequence[str]
) -> dict[str, Tensor]:
    """One call of all the inputs that the graph has, for the outputs named."""
    arrays = {name: one.contiguous().numpy() for name, one in inputs.items()}
    found = session.run(list(outputs), arrays)
    return {name: torch.from_numpy(one) for name, one in zip(outputs, found, strict=True)}
