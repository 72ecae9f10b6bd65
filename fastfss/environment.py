"""What this machine and this installation offer: `fastfss env`, to paste into a bug report."""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from types import ModuleType

import torch

import fastfss
from fastfss.ops import _native_call, _triton_call

# What a bug report needs: the distributions that may provide it.
PACKAGES = {
    "torch": ("torch",),
    "torchvision": ("torchvision",),
    "numpy": ("numpy",),
    "triton": ("triton", "pytorch-triton", "triton-windows"),
    "timm": ("timm",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-cu12", "tensorrt-cu13"),
    "tensorrt-rtx": ("tensorrt-rtx-cu13-bindings", "tensorrt-rtx-cu12-bindings", "tensorrt-rtx"),
}
ENGINES = ("onnxruntime", "openvino", "tensorrt", "tensorrt-rtx")
# The flags of /proc/cpuinfo that decide how fast the operations are.
CPU_FLAGS = (
    *("sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni"),
    *("avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16"),
    *("asimd", "sve", "bf16"),
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "KMP_AFFINITY", "GOMP_CPU_AFFINITY")
# Extras for those who work on fastfss itself.
DEVELOPER_EXTRAS = ("test", "dev")
FROM_FOLDER = "imported from a folder, not installed"


@dataclass(frozen=True)
class Cpu:
    """The processor as the operating system describes it.

    Attributes:
        model: its name.
        cores: logical cores that this process may run on.
        features: the instruction sets that matter here.
    """

    model: str
    cores: int
    features: tuple[str, ...]


@dataclass(frozen=True)
class InstructionSets:
    """The variants of the native core.

    Attributes:
        compiled: in this build, slowest first; empty in a build without native code.
        best: the fastest that this CPU runs.
        active: the one in use.
    """

    compiled: tuple[str, ...]
    best: str | None
    active: str | None


@dataclass(frozen=True)
class Threads:
    """How many threads the operations take.

    Attributes:
        torch: torch.get_num_threads(), which the native core follows.
        variables: the environment variables that steer it, where set.
        openmp: files of the OpenMP runtimes mapped into this process.
    """

    torch: int
    variables: dict[str, str]
    openmp: tuple[str, ...]


@dataclass(frozen=True)
class Backend:
    """Something that can run fastfss's operations.

    Attributes:
        name: its name.
        on: whether this process can use it.
        detail: what it runs on, or why it is off.
    """

    name: str
    on: bool
    detail: str


@dataclass(frozen=True)
class Extra:
    """An optional part of fastfss of which packages are missing.

    Attributes:
        name: the extra, `timm` in `pip install "fastfss[timm]"`.
        missing: the names of the packages that are not installed.
        command: installs them.
    """

    name: str
    missing: tuple[str, ...]
    command: str


@dataclass(frozen=True)
class Environment:
    """The answer of `environment`; `str()` gives the text of `fastfss env`.

    Attributes:
        fastfss: the version.
        installed: how: "wheel", "editable", or imported from a folder without installation.
        python: the version and implementation.
        system: operating system, C library and machine.
        packages: versions by name; None where not installed.
        cpu: the processor.
        instruction_sets: the variants of the native core.
        threads: threads and OpenMP runtimes.
        cuda: the CUDA version that torch was built with and the GPUs that it sees.
        backends: which are on, and why the others are off.
        missing_extras: the extras of fastfss that are not installed; None where that is unknown.
        warnings: what is likely to make trouble.
    """

    fastfss: str
    installed: str
    python: str
    system: str
    packages: dict[str, str | None]
    cpu: Cpu
    instruction_sets: InstructionSets
    threads: Threads
    cuda: str
    backends: tuple[Backend, ...]
    missing_extras: tuple[Extra, ...] | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, object]:
        """The same as plain dicts, lists and strings, for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        sets, threads = self.instruction_sets, self.threads
        lines = [
            ("fastfss", f"{self.fastfss} ({self.installed})"),
            ("python", self.python),
            ("system", self.system),
            *((name, version or "not installed") for name, version in self.packages.items()),
            ("torch's CUDA", self.cuda),
            ("CPU", f"{self.cpu.model}, {self.cpu.cores} logical cores"),
            ("CPU features", " ".join(self.cpu.features) or "unknown"),
            ("compiled for", " ".join(sets.compiled) or "nothing: a build without native code"),
            ("in use", f"{sets.active} (best for this CPU: {sets.best})"),
            ("threads", " ".join([str(threads.torch), *map("=".join, threads.variables.items())])),
            ("OpenMP", ", ".join(threads.openmp) or "no runtime loaded"),
        ]
        if not sets.compiled:
            lines = [line for line in lines if line[0] != "in use"]
        lines += [
            (f"backend {backend.name}", f"{'on' if backend.on else 'off'}: {backend.detail}")
            for backend in self.backends
        ]
        if self.missing_extras is None:
            lines.append(("extras", "unknown: fastfss is not installed"))
        for extra in self.missing_extras or ():
            missing = ", ".join(extra.missing)
            lines.append((f"extra {extra.name}", f"missing {missing}: {extra.command}"))
        lines += [("warning", text) for text in self.warnings]
        width = max(len(label) for label, _ in lines) + 2
        return "\n".join(f"{label + ':':<{width}}{text}" for label, text in lines)


def environment() -> Environment:
    """Look at this machine, this process and this installation.

    Nothing is imported beyond what fastfss itself needs, so that a broken optional package cannot
    hide the rest; versions come from the packages' metadata.

    Returns:
        The Environment; printing it gives the text of `fastfss env`.
    """
    packages = {name: _version(names) for name, names in PACKAGES.items()}
    openmp = _openmp_runtimes()
    return Environment(
        fastfss=fastfss.__version__,
        installed=_installed(),
        python=f"{platform.python_version()} ({platform.python_implementation()})",
        system=_system(),
        packages=packages,
        cpu=_cpu(),
        instruction_sets=_instruction_sets(_native_call.module),
        threads=Threads(
            torch=torch.get_num_threads(),
            variables={n: os.environ[n] for n in THREAD_VARIABLES if n in os.environ},
            openmp=tuple(_public(path) for path in openmp),
        ),
        cuda=_torch_cuda(),
        backends=(
            _native_backend(_native_call.module),
            _cuda_backend(_native_call.module),
            _triton_backend(packages["triton"]),
            *(_engine_backend(name, packages[name]) for name in ENGINES),
        ),
        missing_extras=_missing_extras(),
        warnings=tuple(_openmp_warnings(openmp)),
    )


def _version(distributions: Iterable[str]) -> str | None:
    for name in distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def _installed() -> str:
    try:
        distribution = metadata.distribution("fastfss")
    except metadata.PackageNotFoundError:
        return FROM_FOLDER
    if distribution.read_text("WHEEL") is None:  # what a build leaves beside the sources
        return FROM_FOLDER
    origin = distribution.read_text("direct_url.json") or ""
    return "editable" if re.search(r'"editable"\s*:\s*true', origin) else "wheel"


def _system() -> str:
    library = " ".join(part for part in platform.libc_ver() if part)
    return ", ".join(
        filter(None, [f"{platform.system()} {platform.release()}", _distro(), library])
    )


def _distro() -> str:
    try:
        return platform.freedesktop_os_release().get("PRETTY_NAME", "")
    except OSError:
        return ""


def _cpu() -> Cpu:
    text = _read("/proc/cpuinfo")
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    # A container or taskset may leave this process fewer cores than the machine has.
    affinity = getattr(os, "sched_getaffinity", None)
    return Cpu(
        model=model[1].strip() if model else platform.processor() or platform.machine(),
        cores=len(affinity(0)) if affinity else os.cpu_count() or 1,
        features=tuple(flag for flag in CPU_FLAGS if flag in present),
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _instruction_sets(native: ModuleType | None) -> InstructionSets:
    if native is None:
        return InstructionSets((), None, None)
    return InstructionSets(
        compiled=tuple(native.compiled_isas.split(",")),
        best=native.best_isa().name,
        active=native.active_isa().name,
    )


def _torch_cuda() -> str:
    if torch.version.cuda is None:
        return "none (a CPU build of torch)"
    count = torch.cuda.device_count()
    names = ", ".join(torch.cuda.get_device_name(index) for index in range(count))
    return f"{torch.version.cuda}, GPUs: {names or 'none'}"


def _native_backend(native: ModuleType | None) -> Backend:
    if (reason := _native_call.why_not_native()) is not None:
        return Backend("native", False, reason)
    return Backend("native", True, f"C++ on the CPU, {_instruction_sets(native).active}")


def _cuda_backend(native: ModuleType | None) -> Backend:
    if native is None or native.cuda_architectures is None:
        reason = (
            "built without CUDA kernels; FASTFSS_BUILD=cuda at installation, and nvcc, add them"
        )
        return Backend("cuda", False, reason)
    compiled = f"compiled for {native.cuda_architectures}"
    try:
        devices = native.cuda_devices()
    except RuntimeError as error:
        return Backend("cuda", False, f"{error} ({compiled})")
    if not devices:
        return Backend("cuda", False, f"the CUDA runtime sees no GPU ({compiled})")
    return Backend("cuda", True, f"{', '.join(devices)} ({compiled})")


def _triton_backend(version: str | None) -> Backend:
    installed = "triton is not installed" if version is None else f"triton {version} is installed"
    if not torch.cuda.is_available():
        return Backend("triton", False, f"torch sees no GPU; {installed}")
    device = torch.device("cuda", torch.cuda.current_device())
    if (reason := _triton_call.why_not_device(device)) is not None:
        return Backend("triton", False, reason)
    return Backend(
        "triton", True, f"every operation, on {torch.cuda.get_device_name(device)}; {installed}"
    )


def _engine_backend(name: str, version: str | None) -> Backend:
    if version is None:
        extra = "onnx" if name == "onnxruntime" else name
        return Backend(name, False, f'not installed: pip install "fastfss[{extra}]"')
    if name.startswith("tensorrt") and not torch.cuda.is_available():
        ahead = ", so that it only builds" if name == "tensorrt-rtx" else ""
        return Backend(name, False, f"{version} is installed; torch sees no GPU{ahead}")
    return Backend(name, True, f"{version}, for what `fastfss export` writes")


def _missing_extras() -> tuple[Extra, ...] | None:
    try:
        requirements = metadata.requires("fastfss") or []
    except metadata.PackageNotFoundError:
        return None
    missing: dict[str, list[str]] = {}
    for requirement in requirements:
        wanted, _, marker = requirement.partition(";")
        extra = re.search(r"""extra\s*==\s*["']([\w.-]+)["']""", marker)
        name = re.match(r"[\w.-]+", wanted)
        if extra is None or name is None or extra[1] in DEVELOPER_EXTRAS:
            continue
        if name[0] != "fastfss" and _version([name[0]]) is None:
            missing.setdefault(extra[1], []).append(wanted.strip())
    return tuple(
        Extra(
            name=name,
            missing=tuple(re.split(r"[^\w.-]", wanted, maxsplit=1)[0] for wanted in requirements),
            # By package, not as fastfss[name]: right wherever fastfss itself came from.
            command="pip install " + " ".join(f'"{wanted}"' for wanted in requirements),
        )
        for name, requirements in missing.items()
    )


def _openmp_runtimes() -> tuple[str, ...]:
    """The files of the OpenMP runtimes that are mapped into this process (Linux)."""
    paths = (line.split(maxsplit=5)[-1] for line in _read("/proc/self/maps").splitlines())
    pattern = re.compile(r"/lib(gomp|iomp5?|omp5?)\b[^/]*$")
    return tuple(sorted({path for path in paths if pattern.search(path)}))


def _openmp_warnings(paths: tuple[str, ...]) -> Iterable[str]:
    if len(paths) > 1:
        yield (
            f"{len(paths)} OpenMP runtimes are loaded ({', '.join(map(_public, paths))}): their "
            "idle threads spin against each other; import torch before the package that brings "
            "the other one, or remove that"
        )


def _public(path: str) -> str:
    """The path without the folders that name a person or a machine's layout."""
    for folder in ("site-packages", "dist-packages"):
        _, found, rest = path.partition(f"/{folder}/")
        if found:
            return f"{folder}/{rest}"
    home = str(Path.home())
    return f"~{path[len(home) :]}" if home != "/" and path.startswith(f"{home}/") else path


if __name__ == "__main__":  # `python -m fastfss.environment`: without the command line's extra
    sys.stdout.write(f"{environment()}\n")
