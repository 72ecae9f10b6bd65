"""The two graphs in OpenVINO, on the CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastfss.engines.base import Engine
from fastfss.engines.manifest import GraphSpec, Manifest
from fastfss.errors import import_extra


class OpenVinoEngine(Engine):
    """Both graphs by OpenVINO's CPU plugin, for the shortest time of one image.

    It computes in the engine's precision, so that float32 is not silently bfloat16, which is what
    OpenVINO takes by itself where the CPU has instructions for it.
    """

    backend: ClassVar[str] = "openvino"

    def __init__(self, folder: Path, manifest: Manifest, device: torch.device) -> None:
        super().__init__(folder, manifest, device)
        core = openvino_core()
        low = "bf16" if manifest.precision == "bf16" else "f32"
        self._requests = [
            compiled(core, str(folder / graph.file), precision)
            for graph, precision in ((manifest.encode, low), (manifest.match, "f32"))
        ]

    @classmethod
    def why_not(cls, manifest: Manifest, device: torch.device) -> str | None:
        """What OpenVINO lacks."""
        if importlib.util.find_spec("openvino") is None:
            return 'openvino is not installed: pip install "fastfss[openvino]"'
        if device.type != "cpu":
            return f"it runs on the CPU here, not on {device}"
        return None

    def _encode(self, images: Tensor) -> dict[str, Tensor]:
        spec = self.manifest.encode
        return _run(self._requests[0], spec, {spec.inputs[0].name: images})

    def _match(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return _run(self._requests[1], self.manifest.match, inputs)


@cache
def openvino_core() -> Any:
    """The process's one Core, which lives as long.

    The CPU plugin of each Core gives the thread a signal stack of its own and brings back the one
    before when it ends: of two that end in the order in which they began, the second brings back
    freed memory, and the next signal that has a handler, Ctrl-C or the end of a child, ends the
    process by a segmentation fault (OpenVINO 2026.4).
    """
    return import_extra("openvino", extra="openvino", purpose="the engine of OpenVINO").Core()


def compiled(core: Any, graph: str | bytes, precision: str) -> Any:
    """A request that runs a graph.

    Args:
        core: of `openvino_core`.
        graph: a file, or a model's bytes.
        precision: "f32" or "bf16".
    """
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": 1,
    }
    return core.compile_model(core.read_model(graph), "CPU", settings).create_infer_request()


def _run(request: Any, spec: GraphSpec, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One call, of those tensors that the graph takes."""
    inputs = {one.name: tensors[one.name] for one in spec.inputs}
    return run_by_name(request, inputs, [one.name for one in spec.outputs])


def run_by_name(
    request: Any, inputs: Mapping[str, Tensor], outputs: Sequence[str]
) -> dict[str, Tensor]:
    """One call of all the inputs that the graph has, for the outputs named."""
    arrays = {name: one.contiguous().numpy() for name, one in inputs.items()}
    request.infer(arrays, share_inputs=True, share_outputs=False)
    # Copied: the next call writes into the same memory.
    return {name: torch.from_numpy(request.get_tensor(name).data.copy()) for name in outputs}
