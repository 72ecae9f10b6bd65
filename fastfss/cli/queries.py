"""Which files are the queries, and what their outputs are called."""

from __future__ import annotations

import glob
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from fastfss.data.folders import list_images
from fastfss.errors import expected

# File systems stop at 255 bytes; the endings and the temporary file's ending need some of them.
_LONGEST_NAME = 180


def find_queries(sources: Iterable[str], argument: str = "--query") -> list[Path]:
    """List the files of ``--query``, or of another option that takes the same.

    Args:
        sources: files, folders (their images, without subfolders) and patterns (``**`` goes through
            subfolders).
        argument: the option, for the errors.

    Returns:
        Absolute paths, in the order given, each once; those of a folder or pattern are sorted.

    Raises:
        FileNotFoundError: there is no such file or folder, or nothing matches a pattern.
        ValueError: a folder without images.
    """
    found: dict[Path, None] = {}
    for source in sources:
        path = Path(source)
        if path.is_dir():
            images = list_images(path)
            if not images:
                deeper = f"; for its subfolders give '{path / '**' / '*.jpg'}'"
                hint = deeper if any(entry.is_dir() for entry in path.iterdir()) else ""
                raise expected(f"{argument} '{source}'", "a folder with images", f"none{hint}")
        elif path.exists():
            images = [path]
        else:
            # Not Path.glob: it takes no absolute patterns.
            matches = (Path(name) for name in sorted(glob.glob(source, recursive=True)))  # noqa: PTH207
            images = [match for match in matches if match.is_file()]
            if not images:
                raise FileNotFoundError(f"{argument} '{source}': no such file or folder")
        # Not resolve(): a link's own name is the one the user knows.
        found.update(dict.fromkeys(image.absolute() for image in images))
    return list(found)


def assign_names(queries: Sequence[Path], known: Mapping[str, str]) -> dict[Path, str]:
    """Give each query the name that its outputs begin with: its stem, numbered where stems clash.

    Args:
        queries: the files, in an order that stays the same from run to run.
        known: names given in earlier runs, by file; they stay.

    Returns:
        A name for each query; no two are equal, or differ only in upper and lower case.

    Examples:
        >>> assign_names([Path("mon/1.jpg"), Path("tue/1.jpg"), Path("1_2.jpg")], {}).values()
        dict_values(['1', '1_3', '1_2'])
    """
    names = {query: known.get(str(query), "") for query in queries}
    taken = {name.casefold() for name in known.values()}
    # Whoever can have its own stem gets it, before the numbered names are made around them.
    for query, name in names.items():
        if not name and (stem := _short_stem(query)).casefold() not in taken:
            taken.add(stem.casefold())
            names[query] = stem
    for query, name in names.items():
        number = 2
        while not name:
            numbered = f"{_short_stem(query)}_{number}"
            name = "" if numbered.casefold() in taken else numbered
            number += 1
        taken.add(name.casefold())
        names[query] = name
    return names


def _short_stem(query: Path) -> str:
    stem = query.stem
    while len(stem.encode(errors="surrogateescape")) > _LONGEST_NAME:
        stem = stem[:-1]
    return stem
