"""What there is of a data set, counted and compared with what was published."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastfss.data.coco import PARTS as COCO_PARTS
from fastfss.data.coco import find_coco, mask_folder, open_coco
from fastfss.data.fss1000 import PARTS as FSS_PARTS
from fastfss.data.fss1000 import find_fss1000, open_fss1000
from fastfss.data.index import Progress
from fastfss.data.list_digests import PUBLISHED_LISTS
from fastfss.data.lists import ListPart, make_hsnet_list, matches
from fastfss.data.own_folder import open_folder
from fastfss.data.pascal import find_voc, open_pascal
from fastfss.data.prepare.archives import Report, filled_stems, quiet
from fastfss.data.sets import MaskSet
from fastfss.data.videos import Video, find_davis, open_davis, read_davis_list
from fastfss.errors import expected


@dataclass
class Findings:
    """What there is of a set.

    Attributes:
        subset: numbers other than published are no problem.
        lines: for a reader.
        problems: what is missing, unreadable or of another number than published.
    """

    subset: bool = False
    lines: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def count(self, what: str, came: int, published: int) -> None:
        """Note a number that should be the published one."""
        self.lines.append(f"{what}: {came}{', as published' * (came == published)}")
        if came != published and not self.subset:
            self.problems.append(f"{what}: expected {published} as published, got {came}")

    @contextmanager
    def problems_of(self, what: str) -> Iterator[None]:
        """Note what a block raises about files, and go on after it."""
        try:
            yield
        except (OSError, ValueError) as error:
            self.problems.append(f"{what}: {error}")


# part -> number of images, and PFENet's list of the same ones.
_PASCAL_PARTS = {
    "train": (10582, ""),
    "val": (1449, "pfenet/val"),
    "voc_train": (1464, "pfenet/voc_original_train"),
    "pfenet_train": (5953, "pfenet/voc_sbd_merge_noduplicate"),
}
# part -> number of images, and of those that have annotations.
_COCO_PARTS = {"train": (82783, 82081), "val": (40504, 40137)}
_FSS_CLASSES, _FSS_IMAGES = 1000, 10000
_DAVIS_VIDEOS = {
    (2016, "train"): 30,
    (2016, "val"): 20,
    (2017, "train"): 60,
    (2017, "val"): 30,
    (2017, "test-dev"): 30,
    (2017, "test-challenge"): 30,
}


def check_set(kind: str, root: Path, report: Report = quiet, *, subset: bool = False) -> Findings:
    """Look at a set, and read every mask that no earlier run has read.

    Args:
        kind: ``pascal``, ``coco``, ``fss1000``, ``davis``, ``folder``.
        root: as for `fastfss.data.sets.open_set`.
        report: told of the progress.
        subset: the set is meant to be a part of the published one.

    Raises:
        FileNotFoundError: there is no such set.
        ValueError: an unknown kind.
    """
    if kind not in _CHECKS:
        raise expected("kind", f"one of {', '.join(_CHECKS)}", repr(kind))
    if not root.is_dir():
        raise FileNotFoundError(f"root '{root}': no such folder")
    findings = Findings(subset)
    _CHECKS[kind](root, findings, report)
    return findings


def _check_pascal(root: Path, findings: Findings, report: Report) -> None:
    voc = find_voc(root)
    findings.lines.append(f"PASCAL VOC 2012 in '{voc}'")
    for part, (published, listed) in _PASCAL_PARTS.items():
        with findings.problems_of(part):
            images = open_pascal(root, part, progress=_reading(report, f"reading {part} masks"))
            findings.count(f"{part}: images", len(images.items), published)
            if len(images.items) == published and listed:
                if matches(listed, (item.name for item in images.items)):
                    findings.lines.append(f"{part}: the images of {listed}")
                else:
                    findings.problems.append(f"{part}: expected the images of {listed}, got others")
            if part in ("train", "val"):
                _compare_hsnet(findings, images, "val" if part == "val" else "trn")
            if part == "train":
                _say_empty(findings, images)


def _check_coco(root: Path, findings: Findings, report: Report) -> None:
    coco = find_coco(root)
    findings.lines.append(f"COCO 2014 in '{coco}'")
    for part, (published, annotated) in _COCO_PARTS.items():
        if not (coco / COCO_PARTS[part]).is_dir():
            findings.lines.append(f"{part}: not there")
            continue
        images = filled_stems(coco / COCO_PARTS[part], ".jpg")
        findings.count(f"{part}: images", len(images), published)
        made = [
            crowds
            for crowds in (True, False)
            if (coco / "annotations" / mask_folder(part, crowds)).is_dir()
        ]
        for crowds in made or [True]:
            text = f"{part}{' without crowds' * (not crowds)}"
            with findings.problems_of(text):
                reading = _reading(report, f"reading {part} masks")
                masks = open_coco(root, part, crowds, progress=reading)
                findings.count(f"{text}: masks", len(masks.items), annotated)
                _compare_hsnet(findings, masks, "val" if part == "val" else "trn")


def _check_fss1000(root: Path, findings: Findings, report: Report) -> None:
    folder = find_fss1000(root)
    findings.lines.append(f"FSS-1000 in '{folder}'")
    with findings.problems_of("images"):
        images = open_fss1000(root, "all", progress=_reading(report, "reading masks"))
        findings.count("classes", len(images.classes), _FSS_CLASSES)
        findings.count("images", len(images.items), _FSS_IMAGES)
        _say_empty(findings, images)
    for part in FSS_PARTS:
        try:
            classes = open_fss1000(root, part).classes
            findings.lines.append(f"{part}: {len(classes)} classes, as published")
        except FileNotFoundError as error:
            # Without lists the set can still be used as a whole.
            findings.lines.append(f"{part}: not available ({error})")
        except ValueError as error:
            findings.problems.append(f"{part}: {error}")


def _check_davis(root: Path, findings: Findings, report: Report) -> None:
    folder = find_davis(root)
    findings.lines.append(f"DAVIS in '{folder}'")
    listed = 0
    for (year, part), published in _DAVIS_VIDEOS.items():
        with findings.problems_of(f"{year} {part}"):
            try:
                read_davis_list(folder, part, year)
            except FileNotFoundError:
                continue
            listed += 1
            videos = open_davis(root, part, year).videos
            findings.count(f"{year} {part}: sequences", len(videos), published)
            objects = 0
            for done, video in enumerate(videos.values(), start=1):
                with findings.problems_of(f"{year} {part} '{video.name}'"):
                    objects += _count_objects(video)
                report(f"reading {year} {part}", done, len(videos))
            frames = sum(len(video.frames) for video in videos.values())
            findings.lines.append(f"{year} {part}: {frames} frames, {objects} objects")
    if not listed:
        findings.problems.append(f"'{folder / 'ImageSets'}': expected lists of sequences, got none")


def _check_folder(root: Path, findings: Findings, report: Report) -> None:
    findings.lines.append(f"folder '{root}'")
    with findings.problems_of("folder"):
        images = open_folder(root, progress=_reading(report, "reading masks"))
        findings.lines.append(f"{len(images.items)} images, {len(images.classes)} classes")
        if images.ignores:
            findings.lines.append("255 is ignored")
        width = max(len(name) for name in images.classes.values())
        for number, members in images.index().items():
            few = "  (no episode: two images are needed)" * (len(members) < 2)
            line = f"  {number:4} {images.classes[number]:{width}} {len(members):6} images{few}"
            findings.lines.append(line)
        _say_empty(findings, images)


_CHECKS: dict[str, Callable[[Path, Findings, Report], None]] = {
    "pascal": _check_pascal,
    "coco": _check_coco,
    "fss1000": _check_fss1000,
    "davis": _check_davis,
    "folder": _check_folder,
}


def _reading(report: Report, text: str) -> Progress:
    return lambda done, total: report(text, done, total)


def _compare_hsnet(findings: Findings, images: MaskSet, part: ListPart) -> None:
    """Say how the lists made from the masks compare with HSNet's.

    No problem if they differ: how HSNet chose its images is not known for certain.
    """
    for fold in range(4):
        made = make_hsnet_list(images, part, fold)
        published = PUBLISHED_LISTS[made.name]
        if made.is_published_in_order:
            verdict = "as published"
        elif made.is_published:
            verdict = "as published, in another order"
        else:
            verdict = f"published: {published.lines}"
        findings.lines.append(f"list {made.name}: {len(made.pairs)} pairs, {verdict}")


def _say_empty(findings: Findings, images: MaskSet) -> None:
    empty = [item.name for item in images.items if not item.pixels]
    if empty:
        text = f"{len(empty)} images show no class, the first is '{empty[0]}'"
        findings.lines.append(text)


def _count_objects(video: Video) -> int:
    """The objects to follow; every mask is read and must have its frame's size."""
    size = tuple(video.frame(0).shape[1:])
    for number in video.annotations:
        labels = video.labels(number)
        if tuple(labels.shape) != size:
            wanted = f"{size[0]} rows x {size[1]} columns as the frames have"
            came = f"{labels.shape[0]} x {labels.shape[1]}"
            raise expected(f"mask '{video.annotations[number]}'", wanted, came)
    return len(video.objects)
