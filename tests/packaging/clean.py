"""Environments without fastfss that borrow the heavy packages of this one."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


class CleanEnvironment:
    """A new virtual environment; this one's packages are importable, its fastfss is not.

    An editable installation hangs on .pth files, which Python reads in its own site-packages only.
    """

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=False, symlinks=True)
        self.folder = folder
        self.python = folder / "bin" / "python"
        paths = {"base": str(folder), "platbase": str(folder)}
        self.site_packages = Path(sysconfig.get_path("purelib", vars=paths))
        borrowed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
        (self.site_packages / "borrowed.pth").write_text("\n".join(sorted(borrowed)) + "\n")

    def pip_install(self, *arguments: str) -> None:
        """`pip install --no-deps` without an index, by this environment's pip."""
        command = [sys.executable, "-m", "pip", "--python", str(self.python), "install"]
        run(*command, "--no-deps", "--no-index", *arguments, cwd=self.folder)

    def run(self, *arguments: str, **variables: str) -> str:
        """The standard output of `python ARGUMENTS`, away from the sources."""
        return run(str(self.python), *arguments, cwd=self.folder, **variables)


def run(*command: str, cwd: Path, **variables: str) -> str:
    """The standard output of a command that must succeed; without this process's PYTHONPATH."""
    environ = {k: v for k, v in os.environ.items() if k != "PYTHONPATH" and "FASTFSS_" not in k}
    # CMake and ninja of this environment, where they are not on PATH.
    environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environ["PATH"]])
    done = subprocess.run(
        command, cwd=cwd, env=environ | variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done.stdout
