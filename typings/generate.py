"""Types of TensorRT's Python bindings, which carry none, from lists of their signatures.

tensorrt_api_10.json and tensorrt_api_11.json hold the signatures as the bindings of 10.16 and 11.4
print them, tensorrt_api_rtx.json those of TensorRT for RTX (typings/read_bindings.py); this writes
them as tensorrt_10/tensorrt/__init__.pyi, tensorrt_11/... and
tensorrt_rtx/tensorrt_rtx_bindings/...:

    python typings/generate.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

HERE = Path(__file__).parent
# Version -> module.
VERSIONS = {"10": "tensorrt", "11": "tensorrt", "rtx": "tensorrt_rtx_bindings"}

# What the bindings call by names of C++ or of typing.
RENAMED = {
    "typing.SupportsInt": "int",
    "typing.SupportsFloat": "float",
    "typing_extensions.Buffer": "bytes | memoryview",
    "typing_extensions.CapsuleType": "object",
    "collections.abc.Sequence": "Sequence",
    "collections.abc.Callable": "Callable[..., Any]",
    "nvonnxparser::OnnxParserFlag": "OnnxParserFlag",
    "nvonnxparser::IParserError": "ParserError",
    "nvinfer1::EngineCapability": "EngineCapability",
    "nvinfer1::IRuntimeCache": "IRuntimeCache",
}
# The bindings do not tell the types of attributes: of those that we use, they are these.
ATTRIBUTES = {
    **dict.fromkeys(("num_errors", "num_io_tensors", "num_inputs", "num_outputs", "nbytes"), "int"),
    **dict.fromkeys(("max_aux_streams", "builder_optimization_level"), "int"),
    **dict.fromkeys(("device_memory_size_v2", "num_optimization_profiles"), "int"),
    "num_compute_capabilities": "int",
    **dict.fromkeys(("refittable", "debug_sync"), "bool"),
    "name": "str",
    "min_severity": "ILogger.Severity",
    "progress_monitor": "IProgressMonitor | None",
    "profiling_verbosity": "ProfilingVerbosity",
    "hardware_compatibility_level": "HardwareCompatibilityLevel",
    "cuda_graph_strategy": "CudaGraphStrategy",
    "dynamic_shapes_kernel_specialization_strategy": "DynamicShapesKernelSpecializationStrategy",
}
BUILTIN = {
    *("int", "float", "bool", "str", "bytes", "memoryview", "object", "None", "list", "tuple"),
    *("dict", "Sequence", "Callable", "Any"),
}
SEVERITIES = ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE")
SEVERITY = [
    "    class Severity:",
    "        name: str",
    "        value: int",
    *(f"        {name}: ILogger.Severity" for name in SEVERITIES),
    "        def __int__(self) -> int: ...",
]
HEAD = '''"""{title} {version}; made by typings/generate.py from tensorrt_api_{major}.json."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, overload

__version__: str

class Dims:
    MAX_DIMS: int
    def __init__(self, shape: Sequence[int] = ...) -> None: ...
    def __len__(self) -> int: ...
    def __iter__(self) -> Iterator[int]: ...
    def __getitem__(self, index: int) -> int: ...
'''


def stub(api: Mapping[str, object], major: str) -> str:
    """The text of the .pyi of a list of signatures."""
    classes, enums, functions = api["classes"], api["enums"], api["functions"]
    assert isinstance(classes, dict) and isinstance(enums, dict) and isinstance(functions, dict)
    known = BUILTIN | classes.keys() | enums.keys() | {"ILogger.Severity"}
    title = "TensorRT for RTX" if major == "rtx" else "TensorRT"
    parts = [HEAD.format(title=title, version=api["version"], major=major)]
    for name, members in enums.items():
        lines = [f"class {name}:", "    name: str", "    value: int"]
        lines += [f"    {member}: {name}" for member in members]
        lines.append(f"    __members__: dict[str, {name}]")
        parts.append("\n".join([*lines, "    def __int__(self) -> int: ..."]))
    for name, members in classes.items():
        if name != "Dims":
            parts.append("\n".join(class_lines(name, members, known)))
    for name, signatures in functions.items():
        parts += [line for one in signatures for line in function_lines(name, [one], known)]
    return "\n\n".join(parts) + "\n"


def class_lines(name: str, members: Mapping[str, object], known: set[str]) -> list[str]:
    """A class. Loggers and monitors, which programs subclass, may be made by any class."""
    base = "(ILogger)" if name == "Logger" else ""
    lines = []
    for member, said in members.items():
        if member == "Severity":
            lines += SEVERITY if not base else []
        elif said == "attribute":
            constant = name in ("ILogger", "Logger") and member.isupper()
            kind = "ILogger.Severity" if constant else ATTRIBUTES.get(member, "Any")
            lines.append(f"    {member}: {kind}")
        else:
            assert isinstance(said, list)
            lines += [f"    {line}" for line in function_lines(member, said, known)]
    # The buffer protocol of what holds bytes.
    if name == "IHostMemory":
        lines += ["    def __bytes__(self) -> bytes: ...", "    def __len__(self) -> int: ..."]
        lines.append("    def __buffer__(self, flags: int, /) -> memoryview: ...")
    if name == "Weights":
        lines.append("    def __init__(self, values: object = ..., /) -> None: ...")
    return [f"class {name}{base}:", *(lines or ["    ..."])]


def function_lines(name: str, signatures: Sequence[str], known: set[str]) -> list[str]:
    """One function, or its overloads."""
    lines = []
    for text in signatures:
        match = re.fullmatch(r"(?:\d+\. )?\w+\((.*)\) -> (.*)", text)
        assert match is not None, text
        parameters = [parameter(one, known) for one in split(match[1])]
        needed = [index for index, one in enumerate(parameters) if not one.endswith(" = ...")]
        # pybind lets a default stand before parameters without one; Python does not.
        parameters[: max(needed, default=-1)] = [
            one.removesuffix(" = ...") for one in parameters[: max(needed, default=-1)]
        ]
        result = typed(match[2], known)
        if len(signatures) > 1:
            lines.append("@overload")
        lines.append(f"def {name}({', '.join(parameters)}) -> {result}: ...")
    return lines


def split(parameters: str) -> list[str]:
    """At the commas outside brackets; a default may be `<Enum.MEMBER: 0>`."""
    found, depth = [""], 0
    for character in parameters:
        depth += {"[": 1, "(": 1, "<": 1, "]": -1, ")": -1, ">": -1}.get(character, 0)
        if character == "," and depth == 0:
            found.append("")
        else:
            found[-1] += character
    return [one.strip() for one in found if one.strip()]


def parameter(text: str, known: set[str]) -> str:
    """`name: type = default`; a size may be a tuple, and what is None by default may be None."""
    said, _, default = text.partition(" = ")
    name, _, kind = said.partition(": ")
    if name == "self":
        return "self"
    if kind in ("Dims", "tuple", "list"):
        kind = {"Dims": "Dims | tuple[int, ...]", "tuple": "tuple[int, ...]"}.get(kind, "list[int]")
    else:
        kind = typed(kind, known)
    if default == "None":
        kind += " | None"
    return f"{name}: {kind}" + (" = ..." if default else "")


def typed(kind: str, known: set[str]) -> str:
    """A type under its name here; Any for those that the lists do not hold."""
    for theirs, ours in RENAMED.items():
        kind = kind.replace(theirs, ours)
    if kind in ("list", "tuple"):
        return f"{kind}[Any, ...]" if kind == "tuple" else "list[Any]"
    if "::" in kind:
        return "Any"
    return re.sub(r"[A-Za-z_][\w.]*", lambda one: one[0] if one[0] in known else "Any", kind)


def main() -> None:
    """Write the stubs of all versions."""
    for major, module in VERSIONS.items():
        api = json.loads((HERE / f"tensorrt_api_{major}.json").read_text())
        folder = HERE / f"tensorrt_{major}" / module
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "__init__.pyi").write_text(stub(api, major))


if __name__ == "__main__":
    main()
