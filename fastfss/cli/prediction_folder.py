"""The output folder of ``fastfss predict``: consistent at every moment, and resumable.

Each query's mask and overlay are written whole or not at all. Then one line is appended to the
journal, ``predictions.jsonl``: constant work per query however many there are, and a line is the
proof that the query is done. ``predictions.json`` is what a user reads; it is made from the
journal, atomically, when a run begins and when it ends, so it never names a file that is not
complete. A run that was killed leaves at most files without a line (they are made again), temporary
files (removed by the next run) and a predictions.json that does not list the newest queries yet.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedWriter
from pathlib import Path
from typing import Any

from fastfss.atomic import write_text_atomically
from fastfss.cli.out_folder import HeldFolder
from fastfss.cli.prediction_settings import differences
from fastfss.cli.queries import assign_names
from fastfss.errors import expected
from fastfss.reading import naming

FORMAT = "fastfss-predictions-1"
REPORT = "predictions.json"
JOURNAL = "predictions.jsonl"

Record = dict[str, Any]


@dataclass(frozen=True)
class PendingQuery:
    """A query that is still to be segmented.

    Attributes:
        path: the image, absolute.
        mask: where its label map goes.
        overlay: where its overlay goes.
    """

    path: Path
    mask: Path
    overlay: Path


class PredictionFolder(HeldFolder):
    """One run's hold on an output folder; a context manager, so that no second run gets in.

    Args:
        path: the folder; made if it is missing.
        settings: what the run is made with, see `PredictionSettings.record`.
        overwrite: begin anew: remove what earlier runs wrote here, and write over files that are
            not theirs.

    Raises:
        OSError: the folder cannot be made or written, or another run holds it.
        ValueError: earlier runs used other settings.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, overwrite: bool = False) -> None:
        super().__init__(path, "fastfss predict")
        self._settings = dict(settings)
        self._overwrite = overwrite
        self._names: dict[str, str] = {}
        self._records: dict[str, Record] = {}
        self._outdated: list[str] = []
        self._journal: BufferedWriter | None = None
        with self._taking_over():
            self._take_over()

    def close(self) -> None:
        """Close the journal, and let the next run in."""
        if self._journal is not None:
            self._journal.close()
        super().close()

    def plan(self, queries: Sequence[Path]) -> list[PendingQuery]:
        """Decide what is left to do; nothing is written yet.

        A query is done if its record is there, its outputs are complete, and the image has not
        changed since.

        Args:
            queries: absolute paths.

        Returns:
            The queries that are not done, in order.

        Raises:
            FileExistsError: an output would replace a file that no earlier run wrote.
        """
        names = assign_names(queries, self._names)
        self._refuse_foreign(name for query, name in names.items() if str(query) not in self._names)
        self._names.update({str(query): name for query, name in names.items()})
        wanted = set(map(str, queries))
        for file, record in list(self._records.items()):
            if not self._is_complete(record) or (file in wanted and _has_changed(record)):
                del self._records[file]
                self._outdated.append(record["name"])
        left = [query for query in queries if str(query) not in self._records]
        return [PendingQuery(query, *self._outputs(names[query])) for query in left]

    def begin(self, pending: int) -> None:
        """Put the folder in order for the run: no outdated files, journal and report up to date.

        Args:
            pending: how many queries are left to do.
        """
        if self._overwrite:
            # The report goes first and the journal last, so that a kill in between leaves neither
            # a report of removed files nor files that nobody knows to be ours.
            (self.path / REPORT).unlink(missing_ok=True)
            self._remove_outputs(self._outdated)
        header = {"format": FORMAT, "settings": self._settings, "names": self._names}
        # Without torn lines and without what is no longer true.
        lines = [_line(header), *map(_line, self._records.values())]
        write_text_atomically(self.path / JOURNAL, b"".join(lines).decode("ascii"))
        self._journal = (self.path / JOURNAL).open("ab")
        self.report(failed=[], pending=pending)
        self._remove_outputs(self._outdated)

    def add(self, query: PendingQuery, before: os.stat_result, prediction: Record) -> None:
        """Record that a query is done; both of its outputs must be in place.

        Args:
            query: one of those that `plan` returned.
            before: the image's state, taken before it was read.
            prediction: what the report says about it: size, ways, seconds.
        """
        assert self._journal is not None, "begin() comes first"
        file = str(query.path)
        record = {
            "file": file,
            "name": self._names[file],
            **prediction,
            "check": {
                "bytes": before.st_size,
                "mtime_ns": before.st_mtime_ns,
                "mask_bytes": query.mask.stat().st_size,
                "overlay_bytes": query.overlay.stat().st_size,
            },
        }
        # Flushed line by line: a kill leaves whole lines, or at worst a torn last one.
        self._journal.write(_line(record))
        self._journal.flush()
        self._records[file] = record

    def count_missing(self, queries: Sequence[Path]) -> int:
        """Return how many of the queries are not done."""
        return sum(str(query) not in self._records for query in queries)

    def report(self, *, failed: Sequence[Mapping[str, str]], pending: int) -> None:
        """Write predictions.json.

        Args:
            failed: file and error of each query that this run could not do.
            pending: how many of this run's queries are neither done nor failed.
        """
        images = [self._public(self._records[file]) for file in sorted(self._records)]
        head = {
            "format": FORMAT,
            "settings": self._settings,
            "pending": pending,
            "failed": sorted(failed, key=lambda failure: failure["file"]),
        }
        # One line an image: readable, greppable, and diffs well.
        lines = ",".join(f"\n  {json.dumps(image)}" for image in images)
        text = json.dumps(head, indent=1).removesuffix("\n}")
        write_text_atomically(self.path / REPORT, f'{text},\n "images": [{lines}\n ]\n}}\n')

    def _take_over(self) -> None:
        """Read what earlier runs left."""
        if not (self.path / JOURNAL).exists():
            return
        header, records = _read_journal(self.path / JOURNAL)
        whole = header.get("format") == FORMAT and _is_header(header)
        if self._overwrite:
            self._outdated = list(header["names"].values()) if whole else []
            return
        if not whole:
            wanted = f"a journal in the format {FORMAT}"
            alike = header.get("format") == FORMAT
            came = "a damaged one; --overwrite begins anew" if alike else "another file"
            raise expected(f"--out '{self.path / JOURNAL}'", wanted, came)
        # A run that came to nothing binds nobody to its settings.
        if records and (changes := differences(header["settings"], self._settings)):
            raise self._made_otherwise(changes)
        self._names = header["names"]
        self._records = records

    def _refuse_foreign(self, names: Iterable[str]) -> None:
        """Refuse to write over files that no run recorded in the journal has announced."""
        if self._overwrite:
            return
        files = [file for name in names for file in self._outputs(name)]
        if not self._names:
            files.append(self.path / REPORT)
        for file in files:
            if file.exists():
                raise FileExistsError(
                    f"--out '{self.path}': holds '{file.name}', which no run recorded here wrote; "
                    "choose another folder, or give --overwrite to write over it"
                )

    def _outputs(self, name: str) -> tuple[Path, Path]:
        return self.path / f"{name}_mask.png", self.path / f"{name}_overlay.png"

    def _remove_outputs(self, names: Iterable[str]) -> None:
        for name in names:
            for file in self._outputs(name):
                file.unlink(missing_ok=True)

    def _is_complete(self, record: Record) -> bool:
        sizes = (record["check"]["mask_bytes"], record["check"]["overlay_bytes"])
        try:
            return sizes == tuple(file.stat().st_size for file in self._outputs(record["name"]))
        except FileNotFoundError:
            return False

    def _public(self, record: Record) -> Record:
        mask, overlay = (file.name for file in self._outputs(record["name"]))
        rest = {key: record[key] for key in record.keys() - {"file", "name", "check"}}
        return {
            "file": record["file"],
            "mask": mask,
            "overlay": overlay,
            **dict(sorted(rest.items())),
        }


def _has_changed(record: Record) -> bool:
    """Whether the image is not the one that was segmented, by size and time of change."""
    try:
        now = Path(record["file"]).stat()
    except OSError:
        return True
    return (now.st_size, now.st_mtime_ns) != (record["check"]["bytes"], record["check"]["mtime_ns"])


def _line(value: Record) -> bytes:
    return json.dumps(value).encode("ascii") + b"\n"


def _read_journal(path: Path) -> tuple[Record, dict[str, Record]]:
    """Return the header, and the records by file; a line torn by a kill is as if not there."""
    entries: list[Record] = []
    with naming(path):
        lines = path.read_bytes().splitlines()
    for line in lines:
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            entries.append(entry)
    header = entries[0] if entries and "format" in entries[0] else {}
    return header, {entry["file"]: entry for entry in entries if _is_record(entry)}


def _is_header(entry: Record) -> bool:
    """Whether settings and names are there; no name leads out of the folder."""
    names = entry.get("names")
    return (
        isinstance(entry.get("settings"), dict)
        and isinstance(names, dict)
        and all(map(_is_name, names.values()))
        and len(set(names.values())) == len(names)
    )


def _is_record(entry: Record) -> bool:
    """Whether a line has all that is read of it; one that was damaged is as if not there."""
    check = entry.get("check")
    numbers = ("bytes", "mtime_ns", "mask_bytes", "overlay_bytes")
    return (
        isinstance(check, dict)
        and all(type(check.get(key)) is int for key in numbers)
        and isinstance(entry.get("file"), str)
        and "\0" not in entry["file"]
        and _is_name(entry.get("name"))
    )


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & set("/\\\0")
