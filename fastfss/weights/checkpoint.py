"""Checkpoint files: safetensors and PyTorch files in, safetensors out."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from fastfss.atomic import atomic_path
from fastfss.errors import CheckpointError, expected

# Where training scripts put the state dict when they save more than that.
_WRAPPERS = ("state_dict", "model")
# What data-parallel wrappers put before every key.
_PARALLEL_PREFIX = "module."
_TORCH_STARTS = (b"PK\x03\x04", b"\x80")  # a zip archive; a pickle of protocol 2 and above


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file or of a file written by `torch.save`.

    PyTorch files are read with `weights_only=True`: no code in the file is ever run. A state dict
    under "state_dict" or "model" is taken out, a "module." prefix common to all keys is dropped.

    Args:
        path: the file; its content decides how it is read, not its name.

    Returns:
        Key to tensor, on the CPU, in the file's order and dtypes.

    Raises:
        CheckpointError: missing, unreadable, truncated, or not a dictionary of tensors.
    """
    path = Path(path)
    found: object
    if _is_safetensors(path):
        try:
            found = safetensors.torch.load_file(path)
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            raise _damaged(path, error) from error
    else:
        found = _read_torch_file(path)
    return _without_common_prefix(_as_tensors(found, path))


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata of a .safetensors file, as given to `save_checkpoint`.

    Args:
        path: the file.

    Returns:
        The metadata; empty if the file has none.

    Raises:
        CheckpointError: missing, unreadable, or not a safetensors file.
    """
    path = Path(path)
    if not _is_safetensors(path):
        raise CheckpointError(f"{path}: expected a safetensors file, found a PyTorch file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def save_checkpoint(
    path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write tensors as safetensors; a reader sees the old file or the whole new one, never a part.

    Args:
        path: the file, ending in .safetensors; its folder must exist.
        tensors: key to tensor, any device, dtype and memory layout.
        metadata: text stored beside them.

    Raises:
        ValueError: another suffix, or no tensors.
        TypeError: an entry that is not a tensor, or metadata that is not text.
        FileNotFoundError: no such folder.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise expected("path", "a name ending in .safetensors", repr(path.name))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path: the folder {path.parent} does not exist")
    if not tensors:
        raise expected("tensors", "at least one tensor", "none")
    for key, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors: {key!r} is {_kind(tensor)}, expected a tensor")
    for key, text in (metadata or {}).items():
        if not isinstance(key, str) or not isinstance(text, str):
            raise TypeError(f"metadata: {key!r} is {_kind(text)}, expected text")
    # Cloned: safetensors refuses tensors that share memory or are not contiguous.
    own = {
        key: tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, tensor in tensors.items()
    }
    with atomic_path(path) as temporary:
        # Not save_file: it makes files that only their owner may read.
        temporary.write_bytes(safetensors.torch.save(own, dict(metadata) if metadata else None))


def _is_safetensors(path: Path) -> bool:
    """Tell a safetensors file from a PyTorch file by its first bytes."""
    if path.is_dir():
        raise CheckpointError(f"{path}: is a folder, expected a checkpoint file")
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if not start:
        raise CheckpointError(f"{path}: the file is empty")
    # Eight bytes of header length, then the JSON header; checked first, because a length may begin
    # with the byte that a pickle begins with.
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        return True
    if start.startswith(_TORCH_STARTS):
        return False
    raise CheckpointError(
        f"{path}: neither a safetensors nor a PyTorch file (begins with {start!r})"
    )


def _read_torch_file(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    # Damaged bytes raise whatever the unpickler stumbles over: RuntimeError, EOFError, KeyError.
    except Exception as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise _damaged(path, error) from error
        raise CheckpointError(
            f"{path}: holds Python objects ({refused[1]}) beside or instead of tensors, which are "
            f"not loaded, because unpickling them could run code; save the state dict alone"
        ) from error


def _as_tensors(found: object, path: Path) -> dict[str, Tensor]:
    for key in _WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{path}: holds {_kind(found)}, expected a dictionary of tensors")
    if not found:
        raise CheckpointError(f"{path}: holds no tensors")
    tensors: dict[str, Tensor] = {}
    for key, value in found.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: entry {key!r} is {_kind(value)}; expected names and tensors only, at the "
                f"top or under {' or '.join(map(repr, _WRAPPERS))}"
            )
        tensors[key] = value.detach()
    return tensors


def _without_common_prefix(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    while all(key.startswith(_PARALLEL_PREFIX) for key in tensors):
        tensors = {key[len(_PARALLEL_PREFIX) :]: value for key, value in tensors.items()}
    return tensors


def _damaged(path: Path, error: Exception) -> CheckpointError:
    lines = str(error).strip().splitlines()
    reason = lines[0][:160] if lines else type(error).__name__
    return CheckpointError(f"{path}: truncated or damaged ({reason})")


def _kind(value: object) -> str:
    return f"of type {type(value).__name__}"
