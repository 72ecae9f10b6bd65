"""Archives: found, checked to be whole, unpacked file by file so that a kill loses nothing."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import os
import re
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import IO, Any, Literal, TypeAlias

from fastfss.atomic import TEMPORARY_SUFFIX, atomic_path
from fastfss.errors import expected

Report: TypeAlias = Callable[[str, int, int], None]  # what is being done, done, of how many
# Where a member goes, relative to the target's folder; None leaves it out.
Placing: TypeAlias = Callable[[str], "str | None"]

_BLOCK = 1 << 20
_TAR_BLOCK = 512
_GIB = 1 << 30
_DAMAGES = (
    *(tarfile.TarError, zipfile.BadZipFile, gzip.BadGzipFile, lzma.LZMAError),
    *(zlib.error, EOFError),
)


@dataclass(frozen=True)
class Source:
    """An archive that a data set is published in.

    Attributes:
        names: what the file is called; "*" stands for anything. The first is the official name.
        origin: where it is published.
        md5: of the official file, where known.
    """

    names: tuple[str, ...]
    origin: str
    md5: str = ""


@dataclass(frozen=True)
class Member:
    """A file in an archive."""

    name: str
    size: int


def quiet(text: str, done: int, total: int) -> None:
    """A report that says nothing."""


def find_source(source: Source, folders: Iterable[Path]) -> Path | None:
    """The archive of a source in the first folder that has it."""
    for folder in folders:
        files = sorted(folder.iterdir()) if folder.is_dir() else []
        for name in source.names:
            for path in files:
                if fnmatch(path.name, name) and path.is_file():
                    return path
    return None


def missing_sources(sources: Mapping[str, Source], folders: Sequence[Path]) -> FileNotFoundError:
    """The error that names archives which are wanted and not there.

    Args:
        sources: what each is for -> the archive.
        folders: where they were looked for.
    """
    listed = "; ".join(
        f"{source.names[0]} ({purpose}; from {source.origin})"
        for purpose, source in sources.items()
    )
    places = " and ".join(f"'{folder}'" for folder in dict.fromkeys(folders))
    return FileNotFoundError(f"not in {places}: {listed}")


def check_archive(path: Path, source: Source, report: Report = quiet) -> None:
    """Make sure that an archive is whole, before anything is unpacked.

    A file with the official digest is; of another its own checks are made: a ZIP's directory, a
    tar's headers, a gzip stream's sum.

    Raises:
        ValueError: no archive, or a part of one.
    """
    if source.md5 and _md5(path, report) == source.md5:
        return
    list_members(path, report)


def list_members(path: Path, report: Report = quiet) -> list[Member]:
    """The regular files of an archive.

    Raises:
        ValueError: no archive, a part of one, or names that lead out of a folder.
    """
    with _whole(path):
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = [
                    Member(info.filename, info.file_size)
                    for info in archive.infolist()
                    if not info.is_dir()
                ]
        else:
            members = _tar_members(path, report)
    for member in members:
        _check_name(path, member.name)
    return members


def unpack(
    path: Path,
    target: Path,
    place: Placing,
    report: Report = quiet,
    *,
    keep: bool = False,
) -> None:
    """Unpack an archive's files; files that are there with their sizes stay.

    Args:
        path: the archive.
        target: the folder.
        place: from a member's name to its path below the target.
        report: told of the files.
        keep: also let files of other sizes stay.

    Raises:
        ValueError: a damaged archive, or a member that leads out of the target.
        OSError: the disk is too small, or cannot be written.
    """
    wanted: dict[str, Path] = {}
    room = 0
    for member in list_members(path, report):
        placed = place(member.name)
        if placed is None:
            continue
        _check_name(path, placed)
        file = target / placed
        there = file.stat().st_size if file.exists() else -1
        if there == member.size or (keep and there > 0):
            continue
        wanted[member.name] = file
        room += member.size
    text = f"unpacking {path.name}"
    if not wanted:
        return
    check_room(target, room)
    for folder in {file.parent for file in wanted.values()}:
        folder.mkdir(parents=True, exist_ok=True)
    report(text, 0, len(wanted))
    with _whole(path):
        for done, (name, stream) in enumerate(_streams(path, wanted), start=1):
            with atomic_path(wanted[name], flush=False) as temporary, temporary.open("wb") as out:
                shutil.copyfileobj(stream, out, _BLOCK)
            report(text, done, len(wanted))


def read_members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Yield name and content of an archive's files, in its order.

    Args:
        path: the archive.
        wanted: whether a member is.

    Raises:
        ValueError: a damaged archive.
    """
    with _whole(path):
        for name, stream in _streams(path, None, wanted):
            yield name, stream.read()


def placed_by(pattern: re.Pattern[str]) -> Placing:
    """Place the members that a pattern matches at the path that is its first group."""

    def place(name: str) -> str | None:
        match = pattern.fullmatch(name)
        return match[1] if match else None

    return place


def check_room(folder: Path, size: int) -> None:
    """Raise an OSError if a disk has less free than so many bytes."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < size:
        raise OSError(
            f"'{folder}': {size / _GIB:.2f} GiB are to be written, {free / _GIB:.2f} GiB are free"
        )


def remove_left_overs(folder: Path) -> None:
    """Remove what a killed run left below a folder."""
    for left in folder.rglob(f".*{TEMPORARY_SUFFIX}"):
        left.unlink(missing_ok=True)


def existing(find: Callable[[Path], Path], root: Path, name: str) -> Path:
    """The folder of a set that is there already, or else where it will be."""
    try:
        return find(root)
    except FileNotFoundError:
        return root / name


def is_filled(path: Path) -> bool:
    """Whether a file is there and not empty."""
    return path.is_file() and path.stat().st_size > 0


def filled_stems(folder: Path, suffix: str) -> set[str]:
    """Names without suffix of the files in a folder that are not empty."""
    if not folder.is_dir():
        return set()
    with os.scandir(folder) as entries:
        return {
            entry.name.removesuffix(suffix)
            for entry in entries
            if entry.name.endswith(suffix) and entry.stat().st_size
        }


def reach_disk() -> None:
    """Let all that was written reach the disk."""
    if hasattr(os, "sync"):
        os.sync()


def _streams(
    path: Path,
    names: Mapping[str, Path] | None,
    wanted: Callable[[str], bool] = lambda name: True,
) -> Iterator[tuple[str, IO[bytes]]]:
    def is_wanted(name: str) -> bool:
        return name in names if names is not None else wanted(name)

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.is_dir() and is_wanted(info.filename):
                    with archive.open(info) as stream:
                        yield info.filename, stream
        return
    with _tar_stream(path) as stream, tarfile.open(fileobj=stream, mode=_tar_mode(stream)) as tar:
        for member in tar:
            if member.isreg() and is_wanted(member.name):
                content = tar.extractfile(member)
                assert content is not None
                yield member.name, content


def _tar_members(path: Path, report: Report) -> list[Member]:
    size = path.stat().st_size
    members: list[Member] = []
    end = 0
    with (
        path.open("rb") as file,
        _tar_stream(path, file) as stream,
        tarfile.open(fileobj=stream, mode=_tar_mode(stream)) as tar,
    ):
        for member in tar:
            if member.isreg():
                members.append(Member(member.name, member.size))
            end = member.offset_data + -(-member.size // _TAR_BLOCK) * _TAR_BLOCK
            report(f"checking {path.name}", file.tell() >> 20, size >> 20)
        # To the end: a compressed stream's sum is only looked at there.
        if stream is file:
            stream.seek(0, os.SEEK_END)
        while stream.read(_BLOCK):
            pass
        # A tar ends with blocks of zeros; tarfile takes one that is cut between files for whole.
        if stream.tell() < end + _TAR_BLOCK:
            raise tarfile.ReadError("the end is missing")
    if not members:
        raise tarfile.ReadError("it holds no files")
    return members


def _tar_stream(path: Path, file: IO[bytes] | None = None) -> Any:
    """The tar inside of a file, decompressed: tarfile's own streams do not check their sums."""
    with path.open("rb") as opened:
        start = opened.read(6)
    if start[:2] == b"\x1f\x8b":
        return gzip.open(file or path)
    if start[:3] == b"BZh":
        return bz2.open(file or path)
    if start == b"\xfd7zXZ\x00":
        return lzma.open(file or path)
    return file or path.open("rb")


def _tar_mode(stream: object) -> Literal["r:", "r|"]:
    """Seeking in a compressed stream would decompress it again."""
    return "r:" if isinstance(stream, io.BufferedReader) else "r|"


@contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Turn what a damaged archive raises into one error that names it."""
    try:
        yield
    except _DAMAGES as error:
        size = path.stat().st_size
        raise expected(
            f"archive '{path}'",
            "a whole archive; load it again",
            f"{size} bytes that are damaged or cut off ({error})",
        ) from None


def _check_name(path: Path, name: str) -> None:
    """Raise a ValueError for a member that would be written outside of a folder."""
    parts = PurePosixPath(name.replace("\\", "/"))
    if parts.is_absolute() or ".." in parts.parts or ":" in name.partition("/")[0]:
        raise expected(f"archive '{path}'", "files inside of its own folder", repr(name))


def _md5(path: Path, report: Report) -> str:
    digest, size, done = hashlib.md5(usedforsecurity=False), path.stat().st_size, 0
    with path.open("rb") as file:
        while block := file.read(16 * _BLOCK):
            digest.update(block)
            done += len(block)
            report(f"checking {path.name}", done >> 20, size >> 20)
    return digest.hexdigest()
