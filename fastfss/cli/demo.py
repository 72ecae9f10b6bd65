"""``fastfss demo``: the main job on a photograph that scikit-image carries."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer
from PIL import Image

from fastfss.atomic import atomic_path, check_writable
from fastfss.cli.options import DebugOption
from fastfss.cli.predict import predict
from fastfss.errors import import_extra

# The coins of scikit-image's photograph "coins" (303 x 384 pixels), measured in it: x, y, radius.
# The upper two rows are annotated, the lower two are to be found.
CUT = 154
_UPPER = (
    *((44, 54, 22), (100, 56, 20), (155, 51, 24), (215, 51, 24), (276, 53, 21), (335, 44, 30)),
    *((45, 124, 22), (102, 126, 20), (154, 127, 20), (205, 124, 21), (270, 119, 26)),
    (336, 124, 21),
)
_LOWER = (
    *((44, 197, 20), (102, 196, 23), (154, 198, 20), (212, 193, 25), (274, 194, 24)),
    *((347, 187, 33), (46, 260, 29), (114, 266, 23), (172, 261, 29), (244, 263, 25)),
    *((301, 263, 27), (358, 268, 23)),
)


def coin_halves() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_]]:
    """The photograph (303, 384, 3) and the mask of all its coins (303, 384).

    Raises:
        MissingExtraError: without scikit-image.
    """
    data = import_extra("skimage.data", extra="demo", purpose="fastfss demo")
    photo = np.stack([data.coins()] * 3, axis=-1)
    y, x = np.mgrid[: photo.shape[0], : photo.shape[1]]
    discs = [(x - cx) ** 2 + (y - cy) ** 2 <= r * r for cx, cy, r in (*_UPPER, *_LOWER)]
    return photo, np.logical_or.reduce(discs)


def demo(
    out: Annotated[Path, typer.Option(help="The folder for inputs and results.")] = Path("demo"),
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|imagenet",
            help="An encoder's weights for SSP, imagenet downloads; else the package's own model.",
        ),
    ] = None,
    backbone: Annotated[str, typer.Option(help="The encoder of --weights.")] = "resnet18",
    layers: Annotated[str, typer.Option(help="The layers to match with.")] = "layer2,layer3",
    debug: DebugOption = False,
) -> None:
    """Annotate half of the coins in a photograph, find the other half.

    Writes the photograph's halves and the mask into OUT/input, prints the `fastfss predict` command
    that it then runs, and how well the other coins were found.
    """
    photo, mask = coin_halves()
    inputs, results = out / "input", out / "results"
    check_writable(out.absolute().parent, "--out")
    inputs.mkdir(parents=True, exist_ok=True)
    images = {
        "coins_upper": photo[:CUT],
        "coins_upper_mask": mask[:CUT],
        "coins_lower": photo[CUT:],
    }
    for name, pixels in images.items():
        with atomic_path(inputs / f"{name}.png") as temporary:
            Image.fromarray(pixels).save(temporary, format="PNG")
    support = [inputs / "coins_upper.png", inputs / "coins_upper_mask.png"]
    query = str(inputs / "coins_lower.png")
    given = (
        ""
        if weights is None
        else f"--backbone {backbone} --layers {layers} --weights {shlex.quote(weights)} --size 640 "
    )
    command = (
        f"fastfss predict {given}--name coin --support {shlex.join(map(str, support))} "
        f"--query {shlex.quote(query)} --out {shlex.quote(str(results))} --overwrite"
    )
    typer.echo(command)
    try:
        predict(
            out=results,
            query=[query],
            support=support,
            name="coin",
            backbone=None if weights is None else backbone,
            layers=None if weights is None else layers,
            weights=weights,
            size=None if weights is None else 640,
            overwrite=True,
        )
    except typer.Exit as finished:
        if finished.exit_code != 0:
            raise
    found = np.asarray(Image.open(results / "coins_lower_mask.png")) > 0
    truth = mask[CUT:]
    iou = (found & truth).sum() / (found | truth).sum()
    typer.echo(f"IoU with the coins that were not annotated: {iou:.2f}")
    typer.echo(f"Look at {results / 'coins_lower_overlay.png'}")
