"""DAVIS 2016 and 2017 from their archives."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fastfss.data.prepare.archives import (
    Report,
    Source,
    check_archive,
    existing,
    find_source,
    missing_sources,
    placed_by,
    quiet,
    reach_disk,
    remove_left_overs,
    unpack,
)
from fastfss.data.videos import find_davis
from fastfss.errors import expected

_ORIGIN = "https://davischallenge.org"
# 2017 first: where both years have a file, its masks tell the objects apart.
ARCHIVES = {
    "2017": Source(("DAVIS-2017-trainval-480p.zip",), f"{_ORIGIN}/davis2017/code.html"),
    "2017 test-dev": Source(("DAVIS-2017-test-dev-480p.zip",), f"{_ORIGIN}/davis2017/code.html"),
    "2017 challenge": Source(
        ("DAVIS-2017-test-challenge-480p.zip",), f"{_ORIGIN}/davis2017/code.html"
    ),
    "2016": Source(("DAVIS-data.zip",), f"{_ORIGIN}/davis2016/code.html"),
}
_FILE = re.compile(
    r"(?:.*/)?DAVIS/"
    r"((?:JPEGImages|Annotations)/480p/[^/]+/[^/]+\.(?:jpg|png)|ImageSets/(?:480p|20\d\d)/[^/]+\.txt)"
)


def prepare_davis(root: Path, archives: Sequence[Path], report: Report = quiet) -> Path:
    """Unpack what there is of DAVIS 2016 and 2017 at 480p, into one folder.

    Args:
        root: gets ``DAVIS/``, or has it in a place where `open_davis` finds it.
        archives: folders with one or more of the archives.
        report: told of the progress.

    Returns:
        The folder that has ``JPEGImages``.

    Raises:
        FileNotFoundError: there is neither the set nor any archive of it.
        ValueError: a damaged archive.
    """
    target = existing(find_davis, root, "DAVIS")
    found = {name: find_source(source, archives) for name, source in ARCHIVES.items()}
    if not any(found.values()) and not (target / "JPEGImages").is_dir():
        wanted = {f"DAVIS {name}": ARCHIVES[name] for name in ("2017", "2016")}
        raise missing_sources(wanted, archives)
    for name, path in found.items():
        if path is not None:
            check_archive(path, ARCHIVES[name], report)
    if target.exists():
        remove_left_overs(target)
    for name, path in found.items():
        if path is not None:
            unpack(path, target, placed_by(_FILE), report, keep=name == "2016")
            if not (target / "JPEGImages" / "480p").is_dir():
                raise expected(f"archive '{path}'", "DAVIS/JPEGImages/480p", "none")
    reach_disk()
    return target
