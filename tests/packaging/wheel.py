"""What a wheel of this checkout must and must not hold: `python tests/packaging/wheel.py WHEEL...`.

Needs the standard library alone: .ci/wheels runs it by the interpreter that the wheel is for.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MEGABYTE = 1_000_000
LIMIT = 10 * MEGABYTE  # bytes of the wheel without its weights
WEIGHTS = "fastfss/weights/files/"
NATIVE = re.compile(r"fastfss/_native\.[\w-]+\.so")
# Where a build works or a person lives; followed by more than the slash.
MACHINE_PATH = re.compile(rb"/(?:home|root|tmp|work|build|io|host|Users)/[\w.+-]+[\w./+-]*")


@dataclass(frozen=True)
class Size:
    """Bytes in the archive, as they are downloaded."""

    wheel: int
    weights: int
    native: int


def size(wheel: Path) -> Size:
    """How large the wheel is, and which part of it are weights and the native module."""
    entries = zipfile.ZipFile(wheel).infolist()
    return Size(
        wheel=wheel.stat().st_size,
        weights=sum(e.compress_size for e in entries if e.filename.startswith(WEIGHTS)),
        native=sum(e.compress_size for e in entries if NATIVE.fullmatch(e.filename)),
    )


def package_files(root: Path = ROOT) -> set[str]:
    """The files of fastfss/ in a checkout, without what running and building left there.

    fastfss/kernels is a link to kernels/, which a plain walk would not follow.
    """
    folders = [root / "fastfss", root / "fastfss" / "kernels"]
    files = {path for folder in folders for path in folder.rglob("*") if path.is_file()}
    names = {path.relative_to(root).as_posix() for path in files if "__pycache__" not in path.parts}
    return {name for name in names if not NATIVE.fullmatch(name)}


def problems(wheel: Path, root: Path = ROOT) -> list[str]:
    """One line for each thing that is missing, should not be there, or is too large."""
    found = []
    archive = zipfile.ZipFile(wheel)
    names = {name for name in archive.namelist() if not name.endswith("/")}
    metadata = "-".join(wheel.name.split("-")[:2]) + ".dist-info/"
    native = {name for name in names if NATIVE.fullmatch(name)}
    package = names - native - {name for name in names if name.startswith(metadata)}
    wanted = package_files(root)
    found += [f"missing: {name}" for name in sorted(wanted - package)]
    found += [f"should not be there: {name}" for name in sorted(package - wanted)]
    if wheel.name.endswith("-none-any.whl") == bool(native) or len(native) > 1:
        found.append(f"native modules under this tag: {sorted(native) or 'none'}")
    for name in sorted(native | {n for n in names if n.startswith(metadata)}):
        paths = set(MACHINE_PATH.findall(archive.read(name)))
        found += [f"{name}: path of the build machine: {p.decode()}" for p in sorted(paths)]
    if (without := size(wheel).wheel - size(wheel).weights) >= LIMIT:
        found.append(f"{without} bytes without weights: expected less than {LIMIT}")
    return found


def loaded(wheel: Path) -> str:
    """The instruction sets of the native module, loaded by this interpreter without torch."""
    with tempfile.TemporaryDirectory() as folder:
        archive = zipfile.ZipFile(wheel)
        (name,) = (name for name in archive.namelist() if NATIVE.fullmatch(name))
        # By the name's suffix, as an import would: a module for another Python is not found.
        if not name.endswith(tuple(importlib.machinery.EXTENSION_SUFFIXES)):
            raise ImportError(f"{name} is not for this Python")
        path = archive.extract(name, folder)
        load = (
            "import importlib.util, sys\n"
            "spec = importlib.util.spec_from_file_location('_native', sys.argv[1])\n"
            "module = importlib.util.module_from_spec(spec)\n"
            "spec.loader.exec_module(module)\n"
            "print(module.compiled_isas)"
        )
        command = [sys.executable, "-I", "-c", load, path]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def main(wheels: list[str]) -> int:
    """Print each wheel's sizes and problems; 1 where there is one."""
    status = 0
    for wheel in map(Path, wheels):
        bytes_of = size(wheel)
        print(
            f"{wheel.name}\n"
            f"  {bytes_of.wheel / MEGABYTE:.2f} MB, "
            f"{(bytes_of.wheel - bytes_of.weights) / MEGABYTE:.2f} MB without the default weights "
            f"({bytes_of.weights / MEGABYTE:.2f} MB); native module "
            f"{bytes_of.native / MEGABYTE:.2f} MB"
        )
        if not wheel.name.endswith("-none-any.whl"):
            print(f"  loads: {loaded(wheel)}")
        for problem in problems(wheel):
            print(f"  {problem}")
            status = 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
