"""Files that are either whole or not there."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY_SUFFIX = ".fastfss-tmp"


@contextmanager
def atomic_path(path: str | os.PathLike[str], *, flush: bool = True) -> Iterator[Path]:
    """Give a temporary path in the same folder that becomes ``path`` when the block ends well.

    The data reaches the disk before the name does, so neither a kill nor a power cut leaves a part
    of a file under the final name. If the block raises, the temporary file is removed and a file
    that was there before is untouched. After a kill a file ending in ``TEMPORARY_SUFFIX`` may stay.

    Args:
        path: the final file; its folder must exist.
        flush: bring the data to the disk before the name. Who writes thousands of files that can
            be made again may do without: after a power cut, not a kill, some may then be damaged.

    Yields:
        The path to write to.

    Examples:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "numbers.txt"
        >>> with atomic_path(target) as temporary:
        ...     _ = temporary.write_text("1 2 3")
        >>> target.read_text()
        '1 2 3'
    """
    path = Path(path)
    # Not tempfile: its files are readable by their owner only, and these are a user's results.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY_SUFFIX}")
    try:
        yield temporary
        if flush:
            # Windows only lets a file be flushed through a handle that may write.
            with temporary.open("r+b") as file:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        # A full disk names no file, or the temporary one. What is text alone stays as it is.
        if isinstance(error, OSError) and error.errno and error.filename in (None, str(temporary)):
            try:
                error.filename = str(path)
            except AttributeError:  # PyAV's cannot be changed
                raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Write a UTF-8 text file that is either whole or not there.

    Args:
        path: the file; its folder must exist.
        text: its content.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in a folder.

    Args:
        folder: the folder; the caller makes sure that no other process is writing there.
    """
    for left in folder.glob(f".*{TEMPORARY_SUFFIX}"):
        left.unlink(missing_ok=True)


def check_writable(folder: Path, argument: str) -> None:
    """Make sure that files can be written to a folder, before work is done for them.

    Args:
        folder: the folder.
        argument: what to call it in the error.

    Raises:
        OSError: no file can be written there; the subclass says why.
    """
    try:
        write_text_atomically(folder / ".probe", "")
        (folder / ".probe").unlink()
    except OSError as error:
        raise type(error)(f"{argument}: cannot write to '{folder}' ({error.strerror})") from None
