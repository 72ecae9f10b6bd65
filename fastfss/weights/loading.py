"""Strict loading of tensors into a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn

from fastfss.errors import CheckpointError, expected_kind

_LISTED = 8  # entries of each kind that an error message names before it counts the rest


def load_into(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    rename: Callable[[str], str | None] | None = None,
    ignore: Sequence[str] = (),
    source: str = "the checkpoint",
) -> None:
    """Copy tensors into a module's parameters and buffers; all of them or, on an error, none.

    Floating-point tensors are cast to the module's dtype. `num_batches_tracked` may be missing: it
    counts training steps and older files do not have it.

    Args:
        module: receives the values; its dtypes, devices and parameter objects stay.
        tensors: key to tensor.
        rename: the module's name for a key of `tensors`; None leaves that tensor out.
        ignore: shell patterns of keys of `tensors` that may be there and are left out, `"fc.*"`.
        source: what the error message calls the tensors, usually the file.

    Raises:
        CheckpointError: missing, unexpected, doubly named, wrongly shaped or wrongly typed keys.
    """
    if isinstance(ignore, str):
        raise expected_kind("ignore", "a sequence of patterns", f"the text {ignore!r}")
    targets = module.state_dict()
    chosen: dict[str, Tensor] = {}
    unexpected, double, shapes, types = [], [], [], []
    for key, tensor in tensors.items():
        if any(fnmatchcase(key, pattern) for pattern in ignore):
            continue
        name = key if rename is None else rename(key)
        if name is None:
            continue
        target = targets.get(name)
        if target is None:
            unexpected.append(key)
        elif name in chosen:
            double.append(f"{key} -> {name}")
        elif target.shape != tensor.shape:
            shapes.append(f"{key}: {_shape(tensor)}, expected {_shape(target)}")
        elif target.is_floating_point() != tensor.is_floating_point():
            types.append(f"{key}: {tensor.dtype}, expected {target.dtype}")
        if target is not None:
            chosen[name] = tensor
    missing = [
        name for name in targets if name not in chosen and not name.endswith(".num_batches_tracked")
    ]
    problems = [
        f"{len(entries)} {what}: {', '.join(entries[:_LISTED])}"
        + (f", and {len(entries) - _LISTED} more" if len(entries) > _LISTED else "")
        for what, entries in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("for a name already taken", double),
            ("of the wrong shape", shapes),
            ("of the wrong type", types),
        )
        if entries
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit {type(module).__name__}: {'; '.join(problems)}"
        )
    with torch.no_grad():
        for name, tensor in chosen.items():
            targets[name].copy_(tensor)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a scalar"
