"""The output folder of ``fastfss label``: what the job is, and which of its shards are done.

label.json      what the job is made with; written before the first shard, never changed
images.jsonl    its images, a line each, in their order
shards/000012/  a shard that is done; see `fastfss.cli.label_shard`
.work/          shards that are not; removed when the job is done
failed.jsonl    the images that could not be labelled, a line each
masks/, annotations.json, parquet/   the results, when all shards are done
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastfss.atomic import atomic_path, write_text_atomically
from fastfss.cli.label_formats import COCO, FAILED, MASKS, PARQUET, collect, collect_failed
from fastfss.cli.label_images import LabelImage
from fastfss.cli.label_shard import SHARDS, WORK, Shard
from fastfss.cli.out_folder import HeldFolder
from fastfss.cli.prediction_settings import differences
from fastfss.errors import expected

FORMAT = "fastfss-label-1"
MANIFEST, IMAGES = "label.json", "images.jsonl"
# Shards are the steps of going on, and of sharing the work out: not many images are lost with one,
# and each process gets some.
_LARGEST_SHARD, _SHARDS_EACH = 256, 8


class LabelFolder(HeldFolder):
    """One run's hold on an output folder; a context manager, so that no second run gets in.

    Args:
        path: the folder; made if it is missing.
        images: what is labelled, in order.
        settings: what the job is made with, as JSON.
        shard_size: images a shard; None for that of the run before, or one that suits `workers`.
        workers: how many processes share the shards.
        overwrite: begin anew: remove what an earlier job wrote here.

    Raises:
        OSError: the folder cannot be made or written, or another run holds it, or it holds files of
            the same names that no job wrote.
        ValueError: an earlier run had other settings or images.
    """

    def __init__(
        self,
        path: Path,
        images: Sequence[LabelImage],
        settings: Mapping[str, Any],
        *,
        shard_size: int | None,
        workers: int,
        overwrite: bool = False,
    ) -> None:
        self._images = images
        self._list = "".join(json.dumps(image.name) + "\n" for image in images)
        self._settings = {
            **settings,
            "images": len(images),
            "list": hashlib.sha256(self._list.encode()).hexdigest(),
        }
        self._anew = overwrite
        suiting = max(1, min(_LARGEST_SHARD, len(images) // (_SHARDS_EACH * workers)))
        super().__init__(path, "fastfss label")
        with self._taking_over():
            before = self._before()
            # A run that came to nothing binds nobody to its settings.
            made = (path / name for name in (MASKS, COCO, PARQUET))
            begun = any((path / SHARDS).glob("*")) or any(one.exists() for one in made)
            self._anew = overwrite or not begun
            if before is not None and not self._anew:
                suiting = before["shard_size"]
                self._check(before, shard_size)
            self.shard_size = shard_size or suiting

    def shards(self) -> list[Shard]:
        """All shards of the job, in order."""
        starts = range(0, len(self._images), self.shard_size)
        return [
            Shard(number, first, tuple(self._images[first : first + self.shard_size]))
            for number, first in enumerate(starts)
        ]

    def pending(self) -> list[Shard]:
        """The shards that are not done; all of them where the job begins anew."""
        if self._anew:
            return self.shards()
        return [shard for shard in self.shards() if not self._place(shard).exists()]

    def begin(self) -> None:
        """Put the folder in order for the run: the manifest there, no leftovers of cut-off ones."""
        if self._anew:
            self._clear()
            with atomic_path(self.path / IMAGES) as temporary:
                temporary.write_text(self._list, encoding="ascii", newline="\n")
            manifest = {"format": FORMAT, "shard_size": self.shard_size, "settings": self._settings}
            write_text_atomically(self.path / MANIFEST, json.dumps(manifest, indent=1) + "\n")
            self._anew = False
        self._remove(WORK)
        (self.path / WORK).mkdir()
        (self.path / SHARDS).mkdir(exist_ok=True)

    def report(self) -> int:
        """Bring failed.jsonl up to date, and return how many failed in the shards that are done."""
        done = [self._place(shard) for shard in self.shards() if self._place(shard).exists()]
        return collect_failed(self.path, done)

    def finish(self, names: Sequence[str]) -> None:
        """Put the results together; all shards must be done.

        Args:
            names: of the ways.
        """
        shards = [self._place(shard) for shard in self.shards()]
        collect(self.path, shards, self._settings["formats"], names)
        self._remove(WORK)

    def _place(self, shard: Shard) -> Path:
        return self.path / SHARDS / shard.name

    def _before(self) -> dict[str, Any] | None:
        """The manifest of an earlier run, or None."""
        ours = (IMAGES, SHARDS, FAILED, MASKS, COCO, PARQUET)
        path = self.path / MANIFEST
        if not path.exists():
            # images.jsonl comes before the manifest: a kill may leave it alone.
            for name in ours[1:]:
                if (self.path / name).exists():
                    raise FileExistsError(
                        f"--out '{self.path}': holds '{name}', which no job wrote that is recorded "
                        "here; choose another folder"
                    )
            return None
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            manifest = None
        if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
            raise expected(f"--out '{path}'", f"a file in the format {FORMAT}", "another file")
        return manifest

    def _check(self, before: dict[str, Any], shard_size: int | None) -> None:
        """Refuse a job that is not the one of the manifest."""
        then, now = dict(before["settings"]), dict(self._settings)
        lists = then.pop("list"), now.pop("list")
        changes = differences(then, now)
        if lists[0] != lists[1]:
            changes.append(self._first_other_image())
        if shard_size not in (None, before["shard_size"]):
            changes.append(f"shard_size was {before['shard_size']}, now {shard_size}")
        if changes:
            raise self._made_otherwise(changes)

    def _first_other_image(self) -> str:
        with (self.path / IMAGES).open(encoding="ascii") as file:
            names = [json.loads(line) for line in file]
        for number, image in enumerate(self._images):
            was = names[number] if number < len(names) else None
            if image.name != was:
                then = "not there" if was is None else f"'{was}'"
                return f"image {number + 1} was {then}, now '{image.name}'"
        return f"image {len(self._images) + 1} was '{names[len(self._images)]}', now not there"

    def _clear(self) -> None:
        # The manifest last, so that a kill in between leaves no files that nobody knows to be ours.
        for name in (WORK, SHARDS, MASKS, PARQUET):
            self._remove(name)
        for name in (COCO, FAILED, IMAGES, MANIFEST):
            (self.path / name).unlink(missing_ok=True)

    def _remove(self, name: str) -> None:
        """Remove a folder by another name, so that nobody who still writes into it can publish."""
        path = self.path / name
        if path.is_dir():
            away = path.with_name(f".{name.strip('.')}.{secrets.token_hex(4)}.removed")
            path.rename(away)
        for left in self.path.glob(f".{name.strip('.')}.*.removed"):
            shutil.rmtree(left)
