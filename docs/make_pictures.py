"""Makes the pictures of these pages: `python docs/make_pictures.py [FOLDER]`.

Photographs are scikit-image's, masks are what the package's own models answer, and the clip is the
sample of `fastfss serve`. Needs `pip install "fastfss[app]"`; takes some seconds on a core.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from skimage import data

import fastfss
import fastfss.video
from fastfss.app.samples import BallClip
from fastfss.cli.demo import CUT, coin_halves
from fastfss.data.palette import way_colours
from fastfss.interactive import InteractiveSession
from fastfss.result import drawn_over

HEIGHT = 150  # of a picture in a strip
GAP = 6


def strip(pictures: list[Image.Image], height: int = HEIGHT) -> Image.Image:
    """Pictures side by side, of one height."""
    sized = [one.resize((round(one.width * height / one.height), height)) for one in pictures]
    width = sum(one.width for one in sized) + GAP * (len(sized) - 1)
    whole = Image.new("RGB", (width, height), "white")
    left = 0
    for one in sized:
        whole.paste(one, (left, 0))
        left += one.width + GAP
    return whole


def dotted(picture: Image.Image, clicks: list[tuple[int, int, bool]]) -> Image.Image:
    """A picture with its clicks, green on the object and red beside it."""
    picture = picture.copy()
    draw = ImageDraw.Draw(picture)
    r = picture.height // 45
    for x, y, positive in clicks:
        fill = (40, 200, 80) if positive else (230, 40, 40)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=fill, outline="white", width=max(2, r // 4))
    return picture


def coins() -> Image.Image:
    """`fastfss demo`: the annotated half of a photograph, the other half, what was found there."""
    photo, mask = coin_halves()
    annotated, query = photo[:CUT], photo[CUT:]
    model = fastfss.create_model("default").eval()
    task = model.fit([(annotated, mask[:CUT])], name="coin")
    found = model.predict(query, task)
    shown = Image.fromarray(drawn_over(annotated, mask[:CUT].astype(np.uint8), way_colours(1)))
    return strip([shown, Image.fromarray(query), found.overlay(query)])


def clicks() -> Image.Image:
    """The masks of one click on a cup, of a second beside it, and of a third."""
    photo = data.coffee()
    session = InteractiveSession(fastfss.create_model("default").eval(), photo)
    said = [(290, 110, True), (280, 375, False), (320, 300, False)]
    pictures = []
    for number, (x, y, positive) in enumerate(said, start=1):
        result = session.click(x, y, positive=positive)
        pictures.append(dotted(result.overlay(photo), said[:number]))
    return strip(pictures, 200)


def clip() -> Image.Image:
    """Six frames of the sample clip: masks given in the first, and those that follow from them."""
    source = BallClip(data.grass()[:320, :480])
    session = fastfss.video.open(source)
    session.add_labels(0, source.labels(0))
    shown = (0, 6, 12, 18, 24, 30)
    for _ in session.propagate(0, last=shown[-1]):
        pass
    pictures = []
    for frame in shown:
        pixels = source.frame(frame).permute(1, 2, 0).numpy()
        drawn = drawn_over(pixels, session.masks(frame), way_colours(2))
        pictures.append(Image.fromarray(drawn))
    above, below = strip(pictures[:3]), strip(pictures[3:])
    whole = Image.new("RGB", (above.width, above.height + GAP + below.height), "white")
    whole.paste(above, (0, 0))
    whole.paste(below, (0, above.height + GAP))
    return whole


PICTURES = {"coins": coins, "clicks": clicks, "clip": clip}


def main(folder: Path) -> None:
    """Write all pictures into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PICTURES.items():
        make().save(folder / f"{name}.jpg", quality=85, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pictures")
