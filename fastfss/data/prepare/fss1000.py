"""FSS-1000 from its archive."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from fastfss.atomic import write_text_atomically
from fastfss.data.fss1000 import (
    PARTS,
    SPLITS,
    check_class_list,
    class_folders,
    find_class_list,
    find_fss1000,
)
from fastfss.data.lists import read_names
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
from fastfss.errors import expected

ARCHIVE = Source(
    ("fewshot_data.zip", "FSS-1000*.zip", "FSS1000*.zip", "fewshot_data*.zip"),
    "https://github.com/HKUSTCV/FSS-1000",
)
_FILE = re.compile(r"(?:.*/)?([^/]+/\d+\.(?:jpg|png))")


def prepare_fss1000(
    root: Path, archives: Sequence[Path], report: Report = quiet, *, lists: Path | None = None
) -> Path:
    """Unpack FSS-1000 and take over the lists of its classes.

    Args:
        root: gets ``FSS-1000/``, or has it in a place where `open_fss1000` finds it.
        archives: folders with the archive, and, unless ``lists`` is given, with the lists.
        report: told of the progress.
        lists: the folder with HSNet's ``trn.txt``, ``val.txt``, ``test.txt``, or the authors'
            ``fss_test_set.txt``. What is there is checked and copied to ``splits/``.

    Returns:
        The folder of the class folders.

    Raises:
        FileNotFoundError: there is neither the set nor its archive.
        ValueError: a damaged archive, or a list that is not the published one.
    """
    target = existing(find_fss1000, root, "FSS-1000")
    places = [lists] if lists is not None else [*archives, target / SPLITS]
    found = {part: find_class_list(part, places) for part in PARTS}
    for part, path in found.items():
        if path is not None:
            check_class_list(path, part, read_names(path))
    if lists is not None and not any(found.values()):
        raise FileNotFoundError(f"lists '{lists}': expected trn.txt, val.txt or test.txt, got none")
    archive = find_source(ARCHIVE, archives)
    if archive is not None:
        check_archive(archive, ARCHIVE, report)
        if target.exists():
            remove_left_overs(target)
        unpack(archive, target, placed_by(_FILE), report)
        if not class_folders(target):
            raise expected(f"archive '{archive}'", "folders of classes with 1.jpg", "none")
    elif not class_folders(target):
        raise missing_sources({"images and masks": ARCHIVE}, archives)
    (target / SPLITS).mkdir(exist_ok=True)
    for part, path in found.items():
        if path is not None:
            text = "".join(f"{name}\n" for name in read_names(path))
            write_text_atomically(target / SPLITS / f"{PARTS[part][0]}.txt", text)
    reach_disk()
    return target
