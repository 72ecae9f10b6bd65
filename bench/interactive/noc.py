"""NoC of GrabCut alone, prototypes alone, the default model, and refinements, on one table.

    python -m bench.interactive.noc --data FOLDER --encoder mobilenet_v2_tf --weights FILE \
        --layers layer3,layer4 --count 150 --out rows.json
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

import fastfss
from fastfss.data import open_set
from fastfss.protocols.clicks import Mask, Start, by_session, evaluate_clicks, objects_of


class GrabCutAlone:
    """OpenCV's GrabCut from the clicks' disks: what is not said is probably background."""

    def __init__(self, image: Tensor) -> None:
        self.pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
        self.annotation = fastfss.Annotation()

    def click(self, x: int, y: int, positive: bool) -> Mask:
        self.annotation = self.annotation.point(x, y, positive=positive)
        size = self.pixels.shape[:2]
        said = self.annotation.rasterize(size, width=max(1.0, min(size) / 60)).numpy()
        labels = np.full(size, cv2.GC_PR_BGD, np.uint8)
        # A positive click's neighbourhood is probably the object.
        near = self.annotation.rasterize(size, width=min(size) / 4).numpy()
        labels[near == 1] = cv2.GC_PR_FGD
        labels[said == 1], labels[said == 0] = cv2.GC_FGD, cv2.GC_BGD
        models = np.zeros((2, 1, 65))
        cv2.setRNGSeed(0)
        cv2.grabCut(self.pixels, labels, None, models[0], models[1], 3, cv2.GC_INIT_WITH_MASK)
        return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--encoder", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--layers", required=True)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--count", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", help="names of rows")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    images = open_set("folder", arguments.data)
    objects = objects_of(images, count=arguments.count, seed=arguments.seed)

    def model(method: str, **options: object) -> fastfss.methods.FewShotSegmenter:
        return fastfss.create_model(
            method,
            encoder=arguments.encoder,
            weights=arguments.weights,
            layers=arguments.layers.split(","),
            size=arguments.size,
            **options,
        ).for_inference()

    def default() -> fastfss.methods.FewShotSegmenter:
        return fastfss.create_model("default").for_inference()

    starts: dict[str, Callable[[], Start]] = {
        "grabcut alone": lambda: GrabCutAlone,
        "prototypes": lambda: by_session(model("mlc"), "none"),
        "prototypes, guided": lambda: by_session(model("mlc"), "guided"),
        "prototypes, grabcut": lambda: by_session(model("mlc"), "grabcut"),
        "ssp, grabcut": lambda: by_session(model("ssp"), "grabcut"),
        "default": lambda: by_session(default(), "none"),
        "default, guided": lambda: by_session(default(), "guided"),
        "default, edges": lambda: by_session(default(), "edges"),
    }
    rows = []
    for name, start in starts.items():
        if arguments.only and name not in arguments.only:
            continue
        with torch.inference_mode():
            report = evaluate_clicks(start(), images, objects)
        rows.append({"method": name, "encoder": arguments.encoder, "set": arguments.data.name})
        rows[-1] |= report.to_dict()
        noc = ", ".join(f"@{t} {n:.2f}" for t, n in report.noc.items())
        print(f"{name}: NoC {noc}; {1e3 * report.seconds_per_click:.0f} ms a click", flush=True)
        if arguments.out is not None:
            arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
