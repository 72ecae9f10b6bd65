"""The folder of ``--out``: made, writable, and held by one run at a time."""

from __future__ import annotations

import os
from pathlib import Path

from fastfss.atomic import check_writable


def made_writable(path: Path) -> Path:
    """Make the folder of --out; OSError where it cannot be made or written."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"--out '{path}': expected a folder, got a file") from None
    except OSError as error:
        raise type(error)(f"--out: cannot make '{path}' ({error.strerror})") from None
    check_writable(path, "--out")
    return path


def lock_folder(path: Path, program: str) -> int:
    """Keep a second run out of the folder; the lock ends with the process, however it ends.

    Args:
        path: the folder.
        program: what writes there, for the error.

    Returns:
        What to close when the run ends.

    Raises:
        BlockingIOError: another run holds it.
    """
    try:
        import fcntl
    except ImportError:
        # Windows locks no folders: there it is up to the user not to start two runs into one.
        return os.open(os.devnull, os.O_RDONLY)
    folder = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise BlockingIOError(f"--out '{path}': another {program} is writing there") from None
    except OSError:
        # Some network file systems have no locks.
        pass
    return folder
