"""The curve of a run: its validations as rows, and as a picture.

    python -m bench.training.curve RUN --out rows.json --picture curve.png

RUN is the folder of a `fastfss train`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

_SIZE, _MARGIN = (640, 400), 50


def read_rows(run: Path) -> list[dict[str, Any]]:
    """What was run, then every validation with the mean training loss since the one before."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    about = json.loads((run / "run.json").read_text())
    resumed = [row["resumed_at"] for row in log if row["kind"] == "run" and row["resumed_at"]]
    keys = ("effective_batch", "steps", "images", "base_classes", "held_out_classes", "digest")
    start = min(row["time"] for row in log)
    rows: list[dict[str, Any]] = [
        {**{key: about[key] for key in keys}, "torch": about["torch"], "resumed_at": resumed}
    ]
    losses: list[float] = []
    for row in log:
        if row["kind"] == "train":
            losses.append(row["total"])
        elif row["kind"] == "validation":
            figures = {key: round(row[key], 2) for key in ("miou", "fb_iou")}
            loss = round(sum(losses) / len(losses), 4)
            seconds = round(row["time"] - start)
            rows.append({"step": row["step"], **figures, "loss": loss, "seconds": seconds})
            losses = []
    return rows


def draw(rows: Sequence[dict[str, Any]], about: dict[str, Any]) -> Image.Image:
    """mIoU over the steps; a dashed line where the run was killed and resumed."""
    width, height = _SIZE
    image = Image.new("RGB", _SIZE, "white")
    pen = ImageDraw.Draw(image)
    last, top = about["steps"], 10 * (1 + max(int(row["miou"]) for row in rows) // 10)

    def place(step: float, miou: float) -> tuple[float, float]:
        across = _MARGIN + step / last * (width - 2 * _MARGIN)
        return across, height - _MARGIN - miou / top * (height - 2 * _MARGIN)

    for level in range(0, top + 1, 5):
        pen.line([place(0, level), place(last, level)], fill="#dddddd")
        pen.text((12, place(0, level)[1] - 6), f"{level} %", fill="black")
    for step in range(0, last + 1, max(100, last // 600 * 100)):
        pen.text((place(step, 0)[0] - 10, height - _MARGIN + 8), str(step), fill="black")
    for step in about["resumed_at"]:
        x, bottom = place(step, 0)
        for y in range(_MARGIN, int(bottom), 8):
            pen.line([(x, y), (x, y + 4)], fill="#c04040")
        pen.text((x + 4, _MARGIN), "killed, resumed", fill="#c04040")
    points = [place(row["step"], row["miou"]) for row in rows]
    pen.line(points, fill="#2060a0", width=3)
    for x, y in points:
        pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill="#2060a0")
    pen.text((_MARGIN, 16), "mIoU of held-out classes over the steps of training", fill="black")
    return image


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--picture", type=Path, help="write the picture")
    arguments = parser.parse_args()
    rows = read_rows(arguments.run)
    lines = ",\n".join(json.dumps(row) for row in rows)
    print(lines)
    if arguments.out is not None:
        arguments.out.write_text(f"[\n{lines}\n]\n")
    if arguments.picture is not None:
        draw(rows[1:], rows[0]).save(arguments.picture)


if __name__ == "__main__":
    main()
