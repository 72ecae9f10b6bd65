"""The folder of ``--out``: made, writable, and held by one run at a time."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from fastfss.atomic import check_writable, remove_temporaries

Held = TypeVar("Held", bound="HeldFolder")


class HeldFolder:
    """A folder of --out that one run has for itself; a context manager.

    Args:
        path: the folder; made if it is missing.
        program: what writes there, for the error.

    Raises:
        OSError: the folder cannot be made or written, or another run holds it.
    """

    def __init__(self, path: Path, program: str) -> None:
        self.path = path
        self._lock = lock_folder(made_writable(path), program)

    @contextmanager
    def _taking_over(self) -> Iterator[None]:
        """Around what reads the leavings of earlier runs: where it fails, the folder is free."""
        try:
            remove_temporaries(self.path)
            yield
        except BaseException:
            self.close()
            raise

    def __enter__(self: Held) -> Held:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _made_otherwise(self, changes: Iterable[str]) -> ValueError:
        return ValueError(
            f"--out '{self.path}': made with other settings ({'; '.join(changes)}); choose "
            "another folder, or give --overwrite to begin anew"
        )

    def close(self) -> None:
        """Let the next run in."""
        os.close(self._lock)


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
