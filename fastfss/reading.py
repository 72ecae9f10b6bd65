"""Text and JSON files read, so that whatever is wrong with one is a ValueError that names it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fastfss.errors import expected


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in an OSError that names none, as errors of reading do, unlike those of opening.

    Args:
        path: the file that is read inside of the block.
    """
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            error.filename = str(path)
        raise


def read_text(path: Path, argument: str, *, encoding: str = "utf-8") -> str:
    """A text file.

    Args:
        path: the file.
        argument: what to call it in the error.
        encoding: "utf-8", or "utf-8-sig" where a byte order mark may stand before it.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8.
    """
    try:
        with naming(path):
            return path.read_text(encoding=encoding)
    except UnicodeDecodeError as error:
        raise expected(argument, "UTF-8 text", f"other bytes at {error.start}") from None


def parse_json(text: str, argument: str) -> Any:
    """What a JSON text says.

    Raises:
        ValueError: it is no JSON, or nested deeper than Python reads.

    Examples:
        >>> parse_json("[1, 2", "'a.json'")
        Traceback (most recent call last):
        ValueError: 'a.json': expected JSON, got Expecting ',' delimiter: line 1 column 6 (char 5)
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise expected(argument, "JSON", str(error)) from None


def read_json(path: Path, argument: str) -> Any:
    """What a JSON file says.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not UTF-8, no JSON, or nested deeper than Python reads.
    """
    return parse_json(read_text(path, argument), argument)
