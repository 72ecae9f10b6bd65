"""What mining and rectification bring to MLC on garments that training never named.

    python -m bench.accuracy.mlc --data FOLDER --weights RESNET18 --out rows.json

FOLDER holds images/, masks/ (label maps; 0 background, 255 ignored), classes.txt and index.json, as
bench/accuracy/sets.py reads them: many annotated things an image, so that what is held out is in
the background of training episodes. Protocol:

- The classes with enough images are split at random in as many parts as there are splits. A split
  holds one part out of training; its pixels stay in the training images as background, as in the
  paper. Training and test images are disjoint.
- ResNet-18 up to layer3. Up to layer2 it is frozen and runs once an image; layer3's convolutions
  are trained, as published with SGD, momentum 0.9, weight decay 5e-4, the rate divided by 10 after
  each third. Augmentation: mirroring.
- The mining branch starts from the same weights as the baseline, with the pseudo masks of the
  trained baseline, and sees as many episodes.
- Figures: mIoU of 1-shot episodes on test images, the same list for every variant, at the mask's
  own size; intersection and union are summed per class.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bench.accuracy.sets import Categories, episodes, read_set
from fastfss import MLC, create_encoder
from fastfss.data import read_image, read_label_map
from fastfss.encoders import Encoder
from fastfss.methods import LatentClasses, MiningConfig, Rectification
from fastfss.protocols import FoldMeter

FROZEN, TRAINED = "layer2", "layer3"
DECODER_RATE = (
    10  # its learning rate, as a multiple of the encoder's, because it starts from nothing
)


class HalfFrozenEncoder(Encoder):
    """A ResNet whose map `FROZEN` is computed once an image and kept."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__(encoder.name, encoder.features, encoder.normalization)
        self.inner = encoder
        self.maps: dict[int, Tensor] = {}

    def forward(self, images: Tensor, names: Sequence[str] | None = None) -> dict[str, Tensor]:
        maps = torch.stack([self._frozen(image) for image in images])
        return {TRAINED: getattr(self.inner, TRAINED)(maps)}

    def _frozen(self, image: Tensor) -> Tensor:
        key = hash(image.numpy().tobytes())
        if key not in self.maps:
            with torch.no_grad():
                self.maps[key] = self.inner(image[None], (FROZEN,))[FROZEN][0]
        return self.maps[key]


@dataclass(frozen=True)
class Photo:
    """A photograph at the size of training, and its label map at its own."""

    image: Tensor  # (3, h, w) uint8
    labels: Tensor  # (H, W) int64


@dataclass(frozen=True)
class Split:
    """The classes and photographs of one split."""

    seed: int
    base: Categories
    held_out: Categories
    train: frozenset[str]


def read_photos(categories: Categories, size: int) -> dict[str, Photo]:
    """Every image by its stem; all get the size of the most frequent shape, longer side `size`."""
    found = {one.image.stem: one for members in categories.values() for one in members}
    images = {stem: read_image(one.image) for stem, one in found.items()}
    height, width = statistics.mode(tuple(image.shape[1:]) for image in images.values())
    scale = size / max(height, width)
    shape = [round(n * scale / 16) * 16 for n in (height, width)]
    return {
        stem: Photo(
            F.interpolate(image[None], shape, mode="bilinear", antialias=True)[0],
            read_label_map(found[stem].mask),
        )
        for stem, image in images.items()
    }


def make_splits(categories: Categories, count: int, seed: int, least: int) -> Iterator[Split]:
    """`count` splits, in which every class with at least `least` images is held out once."""
    usable = {name: members for name, members in categories.items() if len(members) >= least}
    names = sorted(usable)
    random.Random(f"classes {seed}").shuffle(names)
    stems = sorted({one.image.stem for members in usable.values() for one in members})
    random.Random(f"images {seed}").shuffle(stems)
    train = frozenset(stems[: 2 * len(stems) // 3])
    for part in range(count):
        held_out = {name: usable[name] for name in names[part::count]}
        base = {name: usable[name] for name in names if name not in held_out}
        yield Split(seed * count + part, base, held_out, train)


class Trainer:
    """Trains and scores variants on one split."""

    def __init__(
        self, arguments: argparse.Namespace, photos: dict[str, Photo], encoder: HalfFrozenEncoder
    ) -> None:
        self.arguments = arguments
        self.photos = photos
        self.encoder = encoder
        self.small = {
            stem: F.interpolate(
                photo.labels[None, None].float(), photo.image.shape[1:], mode="nearest-exact"
            )[0, 0].long()
            for stem, photo in photos.items()
        }

    def model(self, **options: Any) -> MLC:
        """A model with the start weights; all share the frozen maps."""
        torch.manual_seed(0)
        encoder = HalfFrozenEncoder(copy.deepcopy(self.encoder.inner))
        encoder.maps = self.encoder.maps
        return MLC(encoder, layers=(TRAINED,), **options).eval()

    def images(self, stems: Sequence[str], flips: Sequence[bool]) -> Tensor:
        """Normalised images (B, 3, h, w)."""
        pairs = zip(stems, flips, strict=True)
        images = torch.stack([mirror(self.photos[stem].image, flip) for stem, flip in pairs])
        return self.encoder.normalization.apply(images.float() / 255)

    def masks(self, stems: Sequence[str], flips: Sequence[bool], values: Sequence[int]) -> Tensor:
        """Masks (B, h, w) of one class each."""
        rows = zip(stems, flips, values, strict=True)
        return torch.stack([binary(mirror(self.small[s], f), value) for s, f, value in rows])

    def episode(self, rng: random.Random, members: Categories) -> tuple[Tensor, ...]:
        """Supports (B, 1, 3, h, w), their masks (B, 1, h, w), queries and their masks."""
        count = self.arguments.batch
        pairs = [rng.sample(members[rng.choice(sorted(members))], 2) for _ in range(count)]
        values = [support.value or 0 for support, _ in pairs]
        sides = []
        for side in range(2):
            stems = [pair[side].image.stem for pair in pairs]
            flips = [rng.random() < 0.5 for _ in pairs]
            sides.append((self.images(stems, flips), self.masks(stems, flips, values)))
        (support, support_mask), (query, query_mask) = sides
        return support[:, None], support_mask[:, None], query, query_mask

    def mined(self, rng: random.Random, pseudo: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Images (B, 3, h, w) and pseudo masks (B, h, w)."""
        stems = rng.choices(sorted(pseudo), k=self.arguments.batch)
        flips = [rng.random() < 0.5 for _ in stems]
        pairs = zip(stems, flips, strict=True)
        return self.images(stems, flips), torch.stack([mirror(pseudo[s], f) for s, f in pairs])

    def train(self, model: MLC, split: Split, pseudo: dict[str, Tensor] | None) -> dict[str, float]:
        """Train in place, with mining given pseudo masks; the mean losses of the last tenth."""
        iterations, rate = self.arguments.iterations, self.arguments.rate
        rng = random.Random(f"episodes {split.seed}")
        mined_rng = random.Random(f"mined {split.seed}")  # the episodes are the same with mining
        members = {
            name: [one for one in images if one.image.stem in split.train]
            for name, images in split.base.items()
        }
        stage = getattr(model.encoder.inner, TRAINED)
        groups: list[dict[str, Any]] = [
            {"params": [p for p in stage.parameters() if p.requires_grad], "lr": rate}
        ]
        if model.decoder is not None:
            groups.append({"params": list(model.decoder.parameters()), "lr": DECODER_RATE * rate})
        optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=5e-4)
        thirds = [iterations // 3, 2 * iterations // 3]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, thirds, gamma=0.1)
        history: list[dict[str, float]] = []
        model.train()
        for _ in range(iterations):
            *episode, query_mask = self.episode(rng, members)
            if pseudo is None:
                losses = {"total": model.loss(model(*episode), query_mask)}
            else:
                images, targets = self.mined(mined_rng, pseudo)
                losses = model.loss(model(*episode, images), query_mask, targets)
            optimizer.zero_grad()
            losses["total"].backward()
            optimizer.step()
            schedule.step()
            history.append({name: float(loss.detach()) for name, loss in losses.items()})
        model.eval()
        last = history[-max(iterations // 10, 1) :]
        return {name: round(statistics.mean(h[name] for h in last), 4) for name in last[0]}

    @torch.no_grad()
    def score(self, model: MLC, categories: Categories, split: Split) -> dict[str, float]:
        """IoU in percent of every class, from test images."""
        test = {
            name: [one for one in images if one.image.stem not in split.train]
            for name, images in categories.items()
        }
        chosen = list(episodes(test, shots=1, queries=self.arguments.queries, seed=split.seed))
        names = sorted({episode.category for episode in chosen})
        meter = FoldMeter(list(range(len(names))))
        for episode in chosen:
            support, query = episode.supports[0], episode.query
            value = support.value or 0
            mask = binary(self.photos[support.image.stem].labels, value)
            truth = binary(self.photos[query.image.stem].labels, value)
            images = self.images([support.image.stem, query.image.stem], [False, False])
            task = model.encode_support(images[None, :1], mask[None, None])
            size = (truth.shape[0], truth.shape[1])
            labels = model.segment(images[1:], task, output_size=size).labels
            meter.update(labels, truth[None], torch.tensor([names.index(episode.category)]))
        return {names[number]: round(iou, 2) for number, iou in meter.class_iou().items()}

    def mine(self, model: MLC, split: Split) -> LatentClasses:
        """Latent classes of the training images, with everything held out as background."""
        values = [members[0].value or 0 for members in split.base.values()]
        samples = ((self.photos[s].image, self.small[s]) for s in sorted(split.train))
        return model.mine(samples, classes=values, config=MiningConfig(self.arguments.clusters))

    def pseudo_masks(self, model: MLC, latent: LatentClasses, split: Split) -> dict[str, Tensor]:
        """The pseudo mask of every training image, by its stem."""
        return {
            stem: model.pseudo_mask(self.photos[stem].image, latent, self.small[stem])
            for stem in sorted(split.train)
        }

    def collect_regions(self, model: MLC, split: Split) -> None:
        """Regions of the training images, by latent classes of the model's own features."""
        latent = self.mine(model, split)
        model.collect_regions((self.photos[s].image for s in sorted(split.train)), latent)


def mirror(tensor: Tensor, flip: bool) -> Tensor:
    return tensor.flip(-1) if flip else tensor


def binary(labels: Tensor, value: int) -> Tensor:
    """Labels to 1 object, 0 background, 255 ignored."""
    mask = (labels == value).to(torch.uint8)
    return mask.masked_fill(labels == 255, 255)


def run_split(trainer: Trainer, split: Split) -> Iterator[dict[str, Any]]:
    """The rows of one split, as they come out."""

    def row(variant: str, model: MLC, started: float, **more: Any) -> dict[str, Any]:
        held_out = trainer.score(model, split.held_out, split)
        base = trainer.score(model, split.base, split)
        return {
            "split": split.seed,
            "variant": variant,
            "miou": round(statistics.mean(held_out.values()), 2),
            "base miou": round(statistics.mean(base.values()), 2),
            "per class": held_out,
            **more,
            "seconds": round(time.process_time() - started),
        }

    rectify = Rectification()
    clusters = trainer.arguments.clusters
    started = time.process_time()
    yield row("frozen", trainer.model(), started)

    started = time.process_time()
    baseline = trainer.model()
    losses = trainer.train(baseline, split, None)
    yield row("baseline", baseline, started, losses=losses)

    started = time.process_time()
    pseudo = trainer.pseudo_masks(baseline, trainer.mine(baseline, split), split)
    mined = trainer.model(latent_classes=clusters)
    losses = trainer.train(mined, split, pseudo)
    yield row("mining", mined, started, losses=losses)

    for variant, options, masks in (
        ("rectification", {}, None),
        ("mining + rectification", {"latent_classes": clusters}, pseudo),
    ):
        started = time.process_time()
        model = trainer.model(rectify=rectify, **options)
        losses = trainer.train(model, split, masks)
        yield row(f"{variant}, background alone", model, started, losses=losses)
        started = time.process_time()
        trainer.collect_regions(model, split)
        assert model.rectifier is not None
        yield row(variant, model, started, regions=len(model.rectifier.regions))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: mean and spread over the splits, and of the differences to the baseline's."""
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    scores = {(row["variant"], row["split"]): (row["miou"], row["base miou"]) for row in rows}
    splits = sorted({row["split"] for row in rows})
    lines = [
        f"| variant | held out, splits {', '.join(map(str, splits))} | mean ± sd "
        "| minus baseline, mean ± sd | base classes, mean |",
        "|---|---|---|---|---|",
    ]
    for variant in variants:
        held_out = [scores[variant, split][0] for split in splits]
        gains = [scores[variant, split][0] - scores["baseline", split][0] for split in splits]
        base = statistics.mean(scores[variant, split][1] for split in splits)
        lines.append(
            f"| {variant} | {' '.join(f'{v:.1f}' for v in held_out)} | {mean_and_spread(held_out)} "
            f"| {mean_and_spread(gains, '+')} | {base:.1f} |"
        )
    return "\n".join(lines)


def mean_and_spread(values: Sequence[float], sign: str = "") -> str:
    spread = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):{sign}.1f} ± {spread:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="a ResNet-18 encoder file")
    parser.add_argument("--size", type=int, default=224, help="pixels of the longer side")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of classes and images")
    parser.add_argument("--least", type=int, default=20, help="images that a class must have")
    parser.add_argument("--iterations", type=int, default=600)
    parser.add_argument("--batch", type=int, default=4, help="episodes, and mined images")
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--clusters", type=int, default=50)
    parser.add_argument("--queries", type=int, default=30, help="episodes a class")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    arguments = parser.parse_args()

    categories = read_set(arguments.data)
    photos = read_photos(categories, arguments.size)
    encoder = HalfFrozenEncoder(create_encoder("resnet18", weights=arguments.weights, last=TRAINED))
    trainer = Trainer(arguments, photos, encoder.eval())
    rows: list[dict[str, Any]] = []
    for seed in arguments.seeds:
        for split in make_splits(categories, arguments.splits, seed, arguments.least):
            for one in run_split(trainer, split):
                rows.append(one)
                print(json.dumps(one), flush=True)
                if arguments.out is not None:
                    lines = ",\n".join(json.dumps(row) for row in rows)
                    arguments.out.write_text(f"[\n{lines}\n]\n")
    print(table(rows))


if __name__ == "__main__":
    main()
