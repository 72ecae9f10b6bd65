"""What ``fastfss label`` writes: a shard's files, and what they become when all are there."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from fastfss.atomic import atomic_path
from fastfss.cli.label_images import LabelImage
from fastfss.errors import expected, import_extra
from fastfss.result import Result

FORMATS = ("masks", "coco", "parquet")
# In a shard's folder: one line an image, then those that failed, the label maps, the rows.
RECORDS, FAILED, MASKS, ROWS = "records.jsonl", "failed.jsonl", "masks", "rows.parquet"
# In the job's folder, of all shards; the label maps keep their name.
COCO, PARQUET = "annotations.json", "parquet"


def read_formats(written: Sequence[str]) -> tuple[str, ...]:
    """The formats that --format names, in the order of `FORMATS`.

    Args:
        written: names, or several with commas between.

    Raises:
        ValueError: another name.
        MissingExtraError: a package that a format needs is not installed.
    """
    names = {name.strip() for text in written for name in text.split(",")}
    for name in sorted(names - set(FORMATS)):
        raise expected("--format", f"some of {', '.join(FORMATS)}", repr(name))
    if names & {"coco", "parquet"}:
        import_extra("pycocotools.mask", extra="cli", purpose="--format coco or parquet")
    if "parquet" in names:
        import_extra("pyarrow.parquet", extra="parquet", purpose="--format parquet")
    return tuple(name for name in FORMATS if name in names)


class ShardFiles:
    """The files of one shard while they are made; a context manager that completes them.

    Args:
        folder: the shard's own folder, empty.
        formats: of `FORMATS`.
    """

    def __init__(self, folder: Path, formats: Sequence[str]) -> None:
        self._folder = folder
        self._formats = formats
        self._records: list[dict[str, Any]] = []
        self._failed: list[dict[str, Any]] = []
        self._made: set[Path] = set()

    def __enter__(self) -> ShardFiles:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:
            return
        if "parquet" in self._formats:
            _write_rows(self._folder / ROWS, self._records)
        if self._failed:
            _write_lines(self._folder / FAILED, self._failed)
        _write_lines(self._folder / RECORDS, self._records)

    def fail(self, identity: int, image: LabelImage, error: str) -> None:
        """Note that an image could not be labelled."""
        self._failed.append({"id": identity, "file": image.name, "error": error})

    def add(self, identity: int, image: LabelImage, result: Result) -> None:
        """Write an image's label map and keep its record.

        Args:
            identity: the image's place in the job's list, from 1.
            image: the image.
            result: what the model says.
        """
        if "masks" in self._formats:
            path = self._folder / MASKS / image.mask
            if path.parent not in self._made:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._made.add(path.parent)
            result.save_mask(path)
        encoded = bool({"coco", "parquet"} & set(self._formats))
        sure = result.presence
        # Of a thousand classes a few are there: only their pixels are looked at again.
        ways = [
            {
                "way": way,
                "name": result.names[way - 1],
                "area": result.area(way),
                "bbox": _box(result.labels == way),
                "score": round(result.confidence[way - 1], 6),
                **({} if sure is None else {"presence": round(sure[way - 1], 6)}),
                **({"counts": result.rle(way)["counts"]} if encoded else {}),
            }
            for way in np.unique(result.labels).tolist()
            if way > 0
        ]
        height, width = result.labels.shape
        record = {"id": identity, "file": image.name, "height": height, "width": width}
        self._records.append({**record, "ways": ways})


def collect(
    out: Path, shards: Sequence[Path], formats: Sequence[str], names: Sequence[str]
) -> None:
    """Put a whole job's results together; a run that was cut off in it does it again.

    Args:
        out: the job's folder.
        shards: the folders of all its shards, in order.
        formats: of `FORMATS`.
        names: of the ways.
    """
    for shard in shards:
        if "masks" in formats:
            _move_masks(shard / MASKS, out / MASKS)
        if "parquet" in formats:
            (out / PARQUET).mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # moved before
                (shard / ROWS).replace(out / PARQUET / f"{shard.name}.parquet")
    if "coco" in formats:
        _write_coco(out / COCO, shards, names)


def count_failed(shard: Path) -> int:
    """How many of the images of a shard that is done failed."""
    return len(_lines(shard / FAILED))


def collect_failed(out: Path, shards: Sequence[Path]) -> int:
    """Write the list of the images that failed in shards that are done; return how many."""
    failed = [line for shard in shards for line in _lines(shard / FAILED)]
    with atomic_path(out / FAILED) as temporary:
        temporary.write_text("".join(failed), encoding="ascii", newline="\n")
    return len(failed)


def _move_masks(source: Path, target: Path) -> None:
    # Renamed one by one: each has its final name or still its shard's, also after a kill.
    for place, folders, files in os.walk(source, topdown=False):
        for folder in folders:
            Path(place, folder).rmdir()
        into = target / os.path.relpath(place, source)
        into.mkdir(parents=True, exist_ok=True)
        for name in files:
            Path(place, name).replace(into / name)
    if source.is_dir():
        source.rmdir()


def _write_coco(path: Path, shards: Sequence[Path], names: Sequence[str]) -> None:
    """Write COCO's JSON, an entry a line, without holding more than one of them."""
    with (
        atomic_path(path) as temporary,
        temporary.open("w", encoding="ascii", newline="\n") as file,
    ):
        categories = [{"id": way, "name": name} for way, name in enumerate(names, start=1)]
        file.write(f'{{"categories": {json.dumps(categories)},\n"images": [')
        _write_entries(file, (_coco_image(record) for record in _records(shards)))
        file.write('],\n"annotations": [')
        each = (one for record in _records(shards) for one in _coco_regions(record, len(names)))
        _write_entries(file, each)
        file.write("]}\n")


def _write_entries(file: Any, entries: Iterator[dict[str, Any]]) -> None:
    for number, entry in enumerate(entries):
        file.write(("," if number else "") + "\n" + json.dumps(entry))


def _coco_image(record: dict[str, Any]) -> dict[str, Any]:
    size = {"height": record["height"], "width": record["width"]}
    return {"id": record["id"], "file_name": record["file"], **size}


def _coco_regions(record: dict[str, Any], ways: int) -> Iterator[dict[str, Any]]:
    for region in record["ways"]:
        yield {
            # One number for each way of each image: the same whatever else is found.
            "id": (record["id"] - 1) * ways + region["way"],
            "image_id": record["id"],
            "category_id": region["way"],
            "segmentation": {
                "size": [record["height"], record["width"]],
                "counts": region["counts"],
            },
            "area": region["area"],
            "bbox": region["bbox"],
            "iscrowd": 0,
            "score": region["score"],
            **({"presence": region["presence"]} if "presence" in region else {}),
        }


def _write_rows(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Write a row for each way that is in an image."""
    arrow = import_extra("pyarrow", extra="parquet", purpose="--format parquet")
    parquet = import_extra("pyarrow.parquet", extra="parquet", purpose="--format parquet")
    rows = [
        {
            "image_id": record["id"],
            "image": record["file"],
            "height": record["height"],
            "width": record["width"],
            **region,
        }
        for record in records
        for region in record["ways"]
    ]
    kinds = {"image_id": arrow.int64(), "image": arrow.string(), "height": arrow.int32()}
    kinds |= {"width": arrow.int32(), "way": arrow.int32(), "name": arrow.string()}
    kinds |= {"area": arrow.int64(), "bbox": arrow.list_(arrow.int32()), "score": arrow.float32()}
    kinds |= {"presence": arrow.float32(), "counts": arrow.string()}
    table = arrow.Table.from_pylist(rows, schema=arrow.schema(list(kinds.items())))
    parquet.write_table(table, path)
    _flush(path)


def _write_lines(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_text(text, encoding="ascii", newline="\n")
    _flush(path)


def _flush(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _lines(path: Path) -> list[str]:
    try:
        with path.open(encoding="ascii") as file:
            return list(file)
    except FileNotFoundError:
        return []


def _records(shards: Sequence[Path]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for line in _lines(shard / RECORDS):
            yield json.loads(line)


def _box(mask: npt.NDArray[np.bool_]) -> list[int]:
    """Left, top, width, height of a mask that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    left, top = int(columns[0]), int(rows[0])
    return [left, top, int(columns[-1]) - left + 1, int(rows[-1]) - top + 1]
