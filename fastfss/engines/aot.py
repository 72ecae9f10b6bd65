"""The two graphs compiled ahead of time for C++ programs: AOTInductor's .pt2 packages.

A package holds machine code for this kind of CPU and runs with libtorch alone; the example program
examples/cpp/segment.cpp loads both. What a program has to know of them lies in the packages'
metadata, as text.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from fastfss.engines.check import TOLERANCE, relative_error
from fastfss.engines.graphs import EncodeGraph, MatchGraph
from fastfss.engines.manifest import EngineError, Manifest
from fastfss.ops._registry import references_only

ENCODE_PACKAGE, MATCH_PACKAGE = "encode.pt2", "match.pt2"


class Contiguous(nn.Module):
    """A graph that gives tensors in the order of their shapes: packages do not check strides."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.inner = graph

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """The graph's results."""
        results = self.inner(*inputs)
        every = results if isinstance(results, tuple) else (results,)
        return tuple(one.contiguous() for one in every)


def write_packages(
    folder: Path,
    manifest: Manifest,
    encode: tuple[EncodeGraph, Sequence[Tensor]],
    match: tuple[MatchGraph, Sequence[Tensor]],
) -> None:
    """Compile both graphs; each takes a minute or so.

    Args:
        folder: gets encode.pt2 and match.pt2.
        manifest: of the engine.
        encode, match: the graphs and examples of their inputs.

    Raises:
        NotImplementedError: an engine of free size.
        RuntimeError: no C++ compiler, or it fails.
        EngineError: a package does not compute what its graph does.
    """
    if manifest.dynamic:
        raise NotImplementedError("AOTInductor: only for engines of one size")
    about = metadata_of(manifest)
    for name, (module, inputs) in ((ENCODE_PACKAGE, encode), (MATCH_PACKAGE, match)):
        with references_only(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about its own internals
            taken = tuple(one.contiguous() for one in inputs)
            graph = Contiguous(module)
            program = torch.export.export(graph, taken, strict=False)
            torch._inductor.aoti_compile_and_package(
                program,
                package_path=str(folder / name),
                inductor_configs={"aot_inductor.metadata": about},
            )
            found = torch._inductor.aoti_load_package(str(folder / name))(*taken)
            error = max(map(relative_error, found, graph(*taken)))
        if not error <= TOLERANCE:
            raise EngineError(f"{name}: differs from eager PyTorch by {error:.1e}")


def metadata_of(manifest: Manifest) -> Mapping[str, str]:
    """What a C++ program needs of the manifest: numbers and names, separated by commas."""

    def listed(values: Sequence[object]) -> str:
        return ",".join(map(str, values))

    before = manifest.preprocessing
    return {
        "fastfss_method": manifest.method,
        "fastfss_weights": manifest.settings["weights"],
        "fastfss_size": listed(manifest.image_size),
        "fastfss_frame": before.frame,
        "fastfss_mean": listed(before.mean),
        "fastfss_std": listed(before.std),
        "fastfss_scale": str(before.scale),
        "fastfss_bgr": str(int(before.bgr)),
        "fastfss_shots": str(manifest.shots),
        "fastfss_ways": str(manifest.ways),
        "fastfss_task": listed([spec.name for spec in manifest.task]),
        "fastfss_align_corners": str(
            int(manifest.output.on_grid and manifest.output.align_corners)
        ),
    }
