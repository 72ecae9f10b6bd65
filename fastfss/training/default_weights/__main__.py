"""How the package's own weights are made, from photographs to the file.

    python -m fastfss.training.default_weights --data DATA --encoder mobilenet_v2.safetensors \
        --work WORK --out default.safetensors

DATA holds clothing/, coco_mini/, davis_mini/ and caltech101_images/, see `photos.read_photos`. Each
step leaves a file in WORK and is not done again where it is there: the encoded views, five models
that each leave a fifth of the classes out, and the model of everything, to which the five give
their calibration.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from fastfss.atomic import check_writable
from fastfss.encoders import Encoder, create_encoder
from fastfss.methods.cue_fusion import CueFusion
from fastfss.training.default_weights.calibration import calibration_of
from fastfss.training.default_weights.episodes import Episodes
from fastfss.training.default_weights.loop import train
from fastfss.training.default_weights.photos import Photo, make_split, read_photos
from fastfss.training.default_weights.views import (
    Counts,
    Views,
    allowed_views,
    encode_views,
    held_out_views,
    make_views,
)
from fastfss.weights import read_checkpoint, save_checkpoint

ENCODER = "mobilenet_v2_tf"
SPLITS = 5
STEPS = 1000
SEED = 0
ABOUT = {
    "licence": "Apache-2.0",
    "trained on": "MobileNetV2 (TensorFlow, ImageNet; Apache-2.0), frozen; clothing, coco_mini, "
    "davis_mini, caltech101",
    "card": "docs/default-model.md",
}


def new_model(encoder_file: Path) -> CueFusion:
    """The model before training, its encoder frozen."""
    torch.manual_seed(SEED)
    encoder: Encoder = create_encoder(ENCODER, weights=encoder_file, folded=True)
    model = CueFusion(encoder).eval()
    model.weights_origin = str(encoder_file)
    return model


def prepared_views(photos: dict[str, list[Photo]], model: CueFusion, folder: Path) -> Views:
    """The encoded views, made where they are not there."""
    if not (folder / "views.json").is_file():
        counts = Counts()
        total = counts.pasted + sum(len(p) * getattr(counts, name) for name, p in photos.items())
        encode_views(model.encoder, make_views(photos, counts, SEED), total, model.layers, folder)
    return Views(folder)


def trained(
    model: CueFusion, photos: dict[str, list[Photo]], views: Views, number: int | None, steps: int
) -> None:
    """Train a model on all but one split, or on everything, in place."""
    split = make_split(photos, number)
    episodes = Episodes(views, allowed_views(views, photos, split), split.held_out, number or 0)

    def report(step: int, loss: float, seconds: float) -> None:
        print(f"split {number}: step {step}, loss {loss:.4f}, {seconds:.0f} s", flush=True)

    train(model, episodes, steps, SEED, report)
    if number is not None:
        names = {name for view in views.views for name in view.things.values()}
        held = Episodes(views, held_out_views(views, photos, split), split.seen(names), number)
        model.calibration.copy_(torch.tensor(calibration_of(model, held)))


def write(model: CueFusion, path: Path, about: dict[str, str]) -> None:
    """Write a model in half precision."""
    tensors = {key: tensor.half() for key, tensor in model.state_dict().items()}
    save_checkpoint(path, tensors, {**model.about(), **about})


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(prog="python -m fastfss.training.default_weights")
    parser.add_argument("--data", type=Path, required=True, help="the folder of the photographs")
    parser.add_argument("--encoder", type=Path, required=True, help="MobileNetV2's weights")
    parser.add_argument("--work", type=Path, required=True, help="for what lies between: 5 GB")
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    for name in ("clothing", "coco_mini", "davis_mini", "caltech101_images"):
        if not (chosen.data / name).is_dir():
            parser.error(f"--data: expected a folder with {name}/, got '{chosen.data}'")
    check_writable(chosen.out.absolute().parent, "--out")
    chosen.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(chosen.threads)
    photos = read_photos(chosen.data)
    views = prepared_views(photos, new_model(chosen.encoder), chosen.work / "views")
    calibrations = []
    for number in (*range(SPLITS), None):
        path = chosen.work / f"{'all' if number is None else f'split{number}'}.safetensors"
        model = new_model(chosen.encoder)
        if not path.is_file():
            trained(model, photos, views, number, chosen.steps)
            model.save(path)
        model.load_checkpoint(read_checkpoint(path), str(path))
        if number is not None:
            calibrations.append(model.calibration.clone())
    model.calibration.copy_(torch.stack(calibrations).mean(dim=0))
    write(model, chosen.out, {**ABOUT, "steps": str(chosen.steps), "seed": str(SEED)})


if __name__ == "__main__":
    main()
