"""The list of signatures of installed bindings, as typings/generate.py takes it.

    python typings/read_bindings.py tensorrt_rtx_bindings > typings/tensorrt_api_rtx.json

Classes and enumerations are those of tensorrt_api_11.json, and those that only these bindings have
of what runs engines.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).parent
# What TensorRT for RTX has and TensorRT has not.
MORE_CLASSES = ("IRuntimeCache",)
MORE_ENUMS = (
    "ComputeCapability",
    "CudaGraphStrategy",
    "DynamicShapesKernelSpecializationStrategy",
    "EngineValidity",
)

OF_NUMPY = ("Dims", "Weights")  # typings/generate.py writes how they are made


def signatures(name: str, documentation: str | None, prefixes: tuple[str, ...]) -> list[str]:
    """The signatures that pybind writes into a docstring; overloads are numbered."""
    found = []
    for line in (documentation or "").splitlines():
        text = line.strip()
        if " -> " in text and text.removeprefix(f"{len(found) + 1}. ").startswith(f"{name}("):
            for prefix in prefixes:
                text = text.replace(prefix, "")
            found.append(text)
    return found


def api(module: ModuleType, known: dict[str, dict[str, object]]) -> dict[str, object]:
    """What bindings hold of what a list of other bindings names.

    Args:
        module: the bindings.
        known: the list.
    """
    inner = next(
        one.__name__ for one in vars(module).values() if getattr(one, "Builder", None) is not None
    )
    prefixes = (f"{inner}.", f"{module.__name__}.")
    classes: dict[str, dict[str, object]] = {}
    for name in sorted({*known["classes"], *MORE_CLASSES}):
        kind = getattr(module, name, None)
        if kind is None:
            continue
        classes[name] = {}
        for base in reversed(kind.__mro__[:-2]):  # but object and pybind's own
            for member, value in sorted(vars(base).items()):
                hidden = member.startswith("_") and member != "__init__"
                made = member == "__init__" and "self: " in (value.__doc__ or "")
                if hidden or (member == "__init__" and (not made or name in OF_NUMPY)):
                    continue
                said = signatures(member, value.__doc__, prefixes)
                classes[name][member] = said or "attribute"
        classes[name] = dict(sorted(classes[name].items()))
    for one in ("ILogger", "Logger"):
        classes[one]["Severity"] = ["(…)"]
    enums = {
        name: list(getattr(module, name).__members__)
        for name in sorted({*known["enums"], *MORE_ENUMS})
        if hasattr(module, name)
    }
    functions = {
        name: signatures(name, getattr(module, name).__doc__, prefixes)
        for name in known["functions"]
        if hasattr(module, name)
    }
    version = str(getattr(module, "__version__", ""))
    return {"classes": classes, "enums": enums, "functions": functions, "version": version}


def main() -> None:
    """Print the list of the bindings that are named."""
    known = json.loads((HERE / "tensorrt_api_11.json").read_text())
    print(json.dumps(api(importlib.import_module(sys.argv[1]), known), indent=1))


if __name__ == "__main__":
    main()
