"""Results of an evaluation as JSON and as a page."""

from __future__ import annotations

import base64
import html
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastfss.atomic import write_text_atomically
from fastfss.data.masks import IGNORED
from fastfss.data.resizing import resize_image
from fastfss.data.sets import MaskSet
from fastfss.methods import FewShotSegmenter
from fastfss.protocols.episode_lists import EpisodeList
from fastfss.protocols.evaluation import Evaluation, segment_episode
from fastfss.protocols.protocol import Protocol
from fastfss.protocols.reading import Reader

_THUMBNAIL = 224
_OBJECT, _MISSED, _WRONG = (0, 158, 115), (0, 114, 178), (213, 94, 0)  # colour-blind safe


@dataclass(frozen=True, eq=False)
class FoldResult:
    """One fold of a report.

    Attributes:
        fold: its number.
        episodes: what was segmented.
        evaluation: what came out.
        pictures: of the worst episodes, see worst_pictures.
    """

    fold: int
    episodes: EpisodeList
    evaluation: Evaluation
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True)
class Picture:
    """One episode for the page: PNG data as text, and what to say of it."""

    caption: str
    images: tuple[str, ...]


def worst_pictures(
    model: FewShotSegmenter,
    protocol: Protocol,
    images: MaskSet,
    episodes: EpisodeList,
    evaluation: Evaluation,
    count: int,
) -> list[Picture]:
    """The worst episodes, segmented once more: each support with its mask, and the query.

    Where the protocol mirrors images at random, these are not mirrored.
    """
    found = []
    reader = Reader(protocol, images, model)
    for number in evaluation.worst(count):
        listed = episodes.episodes[number]
        with torch.no_grad():
            read = reader.read(listed)
            labels = reader.labels(read, segment_episode(model, protocol, read))
        pictures = [
            _support(images.image(member), images.mask(member, cls) == 1)
            for cls, members in zip(listed.classes, listed.supports, strict=True)
            for member in members[:2]
        ]
        pictures.append(_outcome(images.image(listed.query), labels[0].cpu(), read.truth[0].cpu()))
        names = ", ".join(images.classes[cls] for cls in listed.classes)
        iou = 100 * float(evaluation.counts.iou[number])
        caption = f"episode {number}: {names}, {images.items[listed.query].name}, IoU {iou:.1f}"
        found.append(Picture(caption, tuple(pictures)))
    return found


def results(
    protocol: Protocol,
    images: MaskSet,
    folds: Sequence[FoldResult],
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """What the JSON holds; figures in percent.

    Args:
        protocol: by which was evaluated.
        images: the set.
        folds: at least one.
        about: what else decides the figures: method, weights, shots and so on.
    """
    entries = [_entry(protocol, images, one, about) for one in folds]
    plain: dict[str, Any] = {
        "protocol": {**asdict(protocol)},
        "published_sets": images.name in protocol.sets,
        **about,
        "set": {"kind": images.name, "digest": images.digest, "images": len(images.items)},
        "folds": entries,
    }
    if len(folds) > 1:
        plain["mean"] = {
            "folds": len(folds),
            "miou": _rounded(sum(one["miou"] for one in entries) / len(entries)),
        }
        if all(one["fb_iou"] is not None for one in entries):
            plain["mean"]["fb_iou"] = _rounded(sum(one["fb_iou"] for one in entries) / len(entries))
    return plain


def write_results(folder: Path, plain: Mapping[str, Any], folds: Sequence[FoldResult]) -> None:
    """Write results.json and report.html, each whole or not at all."""
    write_text_atomically(folder / "results.json", json.dumps(plain, indent=2) + "\n")
    write_text_atomically(folder / "report.html", page(plain, folds))


def _entry(
    protocol: Protocol, images: MaskSet, one: FoldResult, about: Mapping[str, Any]
) -> dict[str, Any]:
    found = one.evaluation.figures
    decisive = ("shots", "ways", "splits", "split_seed", "read_size")
    setting = {key: about.get(key) for key in decisive}
    return {
        "fold": one.fold,
        "hash": protocol.digest(fold=one.fold, episodes=one.episodes.digest, **setting),
        "episodes": len(one.episodes.episodes),
        "episodes_digest": one.episodes.digest,
        "miou": _rounded(found.miou),
        "interval_95": [_rounded(edge) for edge in found.interval],
        "fb_iou": None if found.fb_iou is None else _rounded(found.fb_iou),
        "runs": [_rounded(miou) for miou in found.run_mious],
        "class_iou": {
            images.classes[number]: _rounded(iou) for number, iou in found.class_iou.items()
        },
        "seconds": round(one.evaluation.seconds, 2),
        "method_seconds": round(one.evaluation.method_seconds, 2),
        "peak_mib": round(one.evaluation.peak_mib),
        "worst": one.evaluation.worst(10),
    }


def _rounded(value: float) -> float | None:
    """Exact enough to compare runs; None for NaN, which JSON has not."""
    return None if math.isnan(value) else round(value, 6)


def page(plain: Mapping[str, Any], folds: Sequence[FoldResult]) -> str:
    """The report as a page that loads nothing from elsewhere."""
    protocol, entries = plain["protocol"], plain["folds"]
    rows = "".join(
        f"<tr><td>{one['fold']}</td><td>{_shown(one['miou'])}</td>"
        f"<td>{_shown(one['interval_95'][0])} to {_shown(one['interval_95'][1])}</td>"
        f"<td>{_shown(one['fb_iou'])}</td><td>{one['episodes']}</td>"
        f"<td>{one['seconds']:.0f}</td><td>{one['peak_mib']}</td></tr>"
        for one in entries
    )
    if mean := plain.get("mean"):
        rows += (
            f"<tr><th>mean of {mean['folds']} folds</th><th>{_shown(mean['miou'])}</th><td></td>"
            f"<th>{_shown(mean.get('fb_iou'))}</th><td></td><td></td><td></td></tr>"
        )
    classes = "".join(
        f"<tr><td>{one['fold']}</td><td>{html.escape(name)}</td><td>{_shown(iou)}</td></tr>"
        for one in entries
        for name, iou in one["class_iou"].items()
    )
    pictures = "".join(_figure(picture) for one in folds for picture in one.pictures)
    warning = (
        ""
        if plain["published_sets"]
        else f"<p><b>No published figure:</b> {html.escape(protocol['name'])} is published for "
        f"{', '.join(protocol['sets'])}.</p>"
    )
    if plain.get("changed"):
        text = html.escape("; ".join(plain["changed"]))
        warning += f"<p><b>Another setting than the usual:</b> {text}.</p>"
    if plain.get("episodes_changed"):
        warning += "<p><b>No published figure:</b> the number of episodes is not the published.</p>"
    settings = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(str(value))}</td></tr>"
        for key, value in plain.items()
        if key not in ("protocol", "folds", "mean", "set")
    )
    hashes = ", ".join(f"fold {one['fold']}: {one['hash'][:16]}" for one in entries)
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<title>{html.escape(plain["method"])} by {html.escape(protocol["name"])}</title>
<style>
body {{ font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; color: #222; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
td, th {{ border: 1px solid #ccc; padding: .25rem .6rem; text-align: left; }}
figure {{ margin: 1rem 0; }} figure img {{ margin-right: .4rem; vertical-align: top; }}
figcaption {{ color: #555; font-size: .9rem; }}
</style></head><body>
<h1>{html.escape(plain["method"])} by the protocol {html.escape(protocol["name"])},
version {protocol["version"]}</h1>
<p>{html.escape(protocol["about"])}. {plain["shots"]}-shot, {plain["ways"]}-way.</p>
{warning}
<table><tr><th>fold</th><th>mIoU %</th><th>95 % of episode draws</th><th>FB-IoU %</th>
<th>episodes</th><th>seconds</th><th>MiB</th></tr>{rows}</table>
<h2>Classes</h2>
<table><tr><th>fold</th><th>class</th><th>IoU %</th></tr>{classes}</table>
<h2>Worst episodes</h2>
<p>Supports with their masks; in the query found pixels are green, missed ones blue, wrong ones
orange.</p>
{pictures}
<h2>Setting</h2>
<table>{settings}</table>
<p>Hashes of protocol, setting and episodes: {hashes}</p>
</body></html>
"""


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _figure(picture: Picture) -> str:
    images = "".join(f'<img alt="" src="data:image/png;base64,{data}">' for data in picture.images)
    return f"<figure>{images}<figcaption>{html.escape(picture.caption)}</figcaption></figure>"


def _support(image: torch.Tensor, mask: torch.Tensor) -> str:
    return _png(image, {_OBJECT: mask})


def _outcome(image: torch.Tensor, labels: torch.Tensor, truth: torch.Tensor) -> str:
    """The query at the size at which it was scored."""
    known, found, wanted = truth != IGNORED, labels > 0, (truth > 0) & (truth != IGNORED)
    pixels = resize_image(image, (truth.shape[0], truth.shape[1]))
    layers = {
        _OBJECT: found & wanted & (labels == truth),
        _WRONG: known & found & ~(labels == truth),
        _MISSED: wanted & ~found,
    }
    return _png(pixels, layers)


def _png(image: torch.Tensor, layers: Mapping[tuple[int, int, int], torch.Tensor]) -> str:
    pixels = image.permute(1, 2, 0).numpy().astype(np.float32)
    for colour, where in layers.items():
        chosen = where.numpy()
        pixels[chosen] = 0.45 * pixels[chosen] + 0.55 * np.array(colour, dtype=np.float32)
    picture = Image.fromarray(pixels.round().astype(np.uint8))
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    data = io.BytesIO()
    picture.save(data, "PNG", optimize=True)
    return base64.b64encode(data.getvalue()).decode()
