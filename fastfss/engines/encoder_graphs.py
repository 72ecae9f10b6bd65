"""ONNX graphs of encoders, for images of any size, kept in the cache."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor, nn

import fastfss
from fastfss.atomic import atomic_path, write_text_atomically
from fastfss.caching import cache_folder
from fastfss.encoders import Encoder
from fastfss.engines import onnx_runtime
from fastfss.engines.choice import installed

_MAKERS = ("onnx", "onnxscript", "onnxruntime")
TOLERANCE = 1e-4  # of a map's norm
MOST_CACHED = 2 << 30  # bytes; of more, those go that were not used for longest
# An even size at all strides: what pads by the size's parity then says so by name.
_EXPORTED = (64, 96)
_SEAL = hashlib.sha256().digest_size  # bytes before a graph in its file
_CHECKED = ((1, 97, 131), (2, 96, 67))  # images, height, width


def graph_path(encoder: Encoder, names: Sequence[str]) -> Path:
    """Where the graph of these maps is kept: another one for other weights or versions."""
    return cache_folder() / "encoders" / f"{_digest(encoder, names)}.graph"


def cached_graph(
    path: Path, encoder: Encoder, names: Sequence[str], report: Callable[[str], None]
) -> bytes:
    """A graph's bytes, of the cache or made now.

    Args:
        path: of `graph_path`.
        encoder, names: as in `exported`.
        report: told before a graph is made.

    Raises:
        NotImplementedError: as `exported` does; that is remembered too.
    """
    failure = path.with_suffix(".failure")
    with suppress(OSError):
        raise NotImplementedError(failure.read_text(encoding="utf-8"))
    with suppress(OSError):
        held = path.read_bytes()
        seal, graph = held[:_SEAL], held[_SEAL:]
        if hashlib.sha256(graph).digest() == seal:
            path.touch()
            return graph
    report("preparing the encoder, once for these weights: some seconds")
    # Where nothing can be written it is made each time.
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        graph = exported(encoder, names)
    except (NotImplementedError, ValueError) as error:
        with suppress(OSError):
            write_text_atomically(failure, str(error))
        raise NotImplementedError(str(error)) from error
    with suppress(OSError):
        with atomic_path(path) as temporary:
            temporary.write_bytes(hashlib.sha256(graph).digest() + graph)
        _prune(path.parent, kept=path)
    return graph


def why_no_export() -> str | None:
    """What is lacking for making a graph and checking it, or None."""
    for package in _MAKERS:
        if importlib.util.find_spec(package) is None:
            return f'making a graph needs {package}: pip install "fastfss[onnx]"'
    return None


def exported(encoder: Encoder, names: Sequence[str]) -> bytes:
    """The ONNX graph of an encoder's maps, of any number of images of any size.

    A graph of free sizes takes torch some ten times longer to make. One of a size has that size in
    its shapes alone, or not; it is checked at others.

    Args:
        encoder: on the CPU, float32.
        names: of the maps.

    Raises:
        NotImplementedError: the encoder cannot be exported, or its graph is right for one size
            alone.
    """
    from fastfss.engines.export import to_onnx

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, images: Tensor) -> tuple[Tensor, ...]:
            found = encoder._compute(images, frozenset(names))
            return tuple(found[name].contiguous() for name in names)

    images = torch.zeros(1, encoder.inputs, *_EXPORTED)
    model = to_onnx(Maps().eval(), [images], ["images"], list(names), {}, simplified=False)
    for value in (*model.graph.input, *model.graph.output):
        for axis in (0, 2, 3):
            value.type.tensor_type.shape.dim[axis].dim_param = f"{value.name}{axis}"
    del model.graph.value_info[:]
    graph: bytes = model.SerializeToString()
    _check(graph, encoder, names)
    return graph


def _check(graph: bytes, encoder: Encoder, names: Sequence[str]) -> None:
    """Raise NotImplementedError where a graph does not compute the encoder's maps."""
    generator = torch.Generator().manual_seed(0)
    session = onnx_runtime.session(graph, quiet=True)
    for batch, height, width in _CHECKED:
        images = torch.randn(batch, encoder.inputs, height, width, generator=generator)
        place = f"at {height} x {width} pixels"
        with torch.no_grad():
            wanted = encoder._compute(images, frozenset(names))
        try:
            found = onnx_runtime.run_by_name(session, {"images": images}, names)
        except Exception as error:  # ONNX Runtime has kinds of its own
            text = " ".join(str(error).split())
            raise NotImplementedError(f"{place} the graph fails: {text}") from error
        for name in names:
            relative = (found[name] - wanted[name]).norm() / wanted[name].norm().clamp_min(1e-30)
            if not relative <= TOLERANCE:
                raise NotImplementedError(f"{place} map {name!r} differs by {relative:.1e}")


def _digest(encoder: Encoder, names: Sequence[str]) -> str:
    """Of everything that a graph depends on."""
    found = hashlib.sha256()
    # ONNX Runtime's too: what it could not run with one version it may with the next.
    versions = [fastfss.__version__, *installed(("torch", *_MAKERS))]
    about = (encoder.name, sorted(map(str, encoder.options.items())), list(names), versions)
    found.update(repr(about).encode())
    for key, tensor in encoder.state_dict().items():
        found.update(key.encode())
        found.update(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:32]


def _prune(folder: Path, *, kept: Path) -> None:
    """Remove the graphs that were not used for longest, until the others are within the limit."""
    files = sorted(folder.glob("*.graph"), key=lambda one: one.stat().st_mtime, reverse=True)
    total = kept.stat().st_size
    for file in (one for one in files if one != kept):
        total += file.stat().st_size
        if total > MOST_CACHED:
            file.unlink(missing_ok=True)
            file.with_suffix(".json").unlink(missing_ok=True)
