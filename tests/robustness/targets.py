"""The files that fastfss reads: how a whole one is made, and a reader that goes as far as use."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import nn

from fastfss import Annotation, Task
from fastfss.cli.marks import load_annotation
from fastfss.cli.prediction_folder import PredictionFolder
from fastfss.data import read_image, read_label_map, read_mask
from fastfss.data.own_folder import open_folder
from fastfss.engines import manifest as engine
from fastfss.protocols.episode_lists import EpisodeList, ListedEpisode
from fastfss.protocols.scribbles import read_scribbles
from fastfss.training import load_recipe, recipe_from
from fastfss.training.activations import read_map, write_map
from fastfss.training.checkpoints import FORMAT, random_state, read_training_state
from fastfss.training.recipe_files import deciding, recipe_digest
from fastfss.video.coco import load_coco
from fastfss.video.cvat import load_cvat
from fastfss.video.session import VideoSession
from fastfss.weights import load_into, read_checkpoint, save_checkpoint
from tests.data.own_sets import label_map, write_pair
from tests.robustness.mutations import Mutation, damaged, odd_header, odd_json, odd_toml
from tests.video.clips import clip, session

# What a library call may raise for a file; `fastfss` prints each of them as one line.
CONTRACT = (ValueError, TypeError, OSError, NotImplementedError)


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Attributes:
        make: write whole files into a folder; the one that is damaged.
        read: read it, and use what it gave.
        mutations: what is done to it.
        named: whether every error names the file.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], None]
    mutations: tuple[Mutation, ...] = (damaged,)
    named: bool = True


JSON, HEADER, TOML = (damaged, odd_json), (damaged, odd_header), (damaged, odd_toml)
with torch.random.fork_rng():
    torch.manual_seed(0)
    NETWORK = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


# ---- Pictures


def _picture(name: str, mode: str, **options: Any) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        labels = label_map(19, 23, [0, 1, 2])
        image = Image.fromarray(labels * (1 if mode in "LP" else 90))
        if mode == "P":
            image.putpalette([value for n in range(256) for value in (n, 255 - n, 7 * n % 256)])
        elif mode == "I;16":
            image = Image.fromarray(labels.astype(np.uint16) * 300)
        else:
            image = image.convert(mode)
        if name.endswith("jpg"):
            exif = Image.Exif()
            exif[0x0112] = 6
            options["exif"] = exif
        image.save(folder / name, **options)
        return folder / name

    return make


def _image(path: Path) -> None:
    pixels = read_image(path)
    assert pixels.dtype == torch.uint8 and pixels.shape[0] == 3 and pixels.numel()


def _mask(path: Path) -> None:
    labels = read_label_map(path)
    assert labels.dtype == torch.int64 and int(labels.min()) >= 0
    value = int(labels.max())
    if value:
        assert (read_mask(path, value=value) == 1).any()


# ---- Tensors


def _weights(folder: Path) -> Path:
    save_checkpoint(folder / "weights.safetensors", NETWORK.state_dict(), {"made": "here"})
    return folder / "weights.safetensors"


def _torch_weights(*, zipped: bool) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        state = {"state_dict": NETWORK.state_dict(), "epoch": 3}
        torch.save(state, folder / "weights.pth", _use_new_zipfile_serialization=zipped)
        return folder / "weights.pth"

    return make


def _read_weights(path: Path) -> None:
    load_into(NETWORK, read_checkpoint(path), source=str(path))


def _task(folder: Path) -> Path:
    tensors = {"prototypes": torch.arange(12.0).view(1, 2, 6), "masks": torch.ones(1, 2, 3, 3)}
    Task("ssp", tensors, "cow", {"encoder": "resnet18", "layers": "layer2"}).save(
        folder / "task.safetensors"
    )
    return folder / "task.safetensors"


def _read_task(path: Path) -> None:
    task = Task.load(path)
    assert task.shots >= 0 and isinstance(task.name, str) and isinstance(task.method, str)
    task.check_settings(task.method, task.settings, argument=f"task {path}")
    task.merge(task).select([0])


# ---- Training


@cache
def _recipe() -> Any:
    return recipe_from(
        {
            "about": "a recipe",
            "model": {"method": "mlc", "encoder": "resnet18", "weights": "random"},
            "data": {"set": "folder", "root": "shapes", "folds": "random", "reserved": 0.25},
            "transform": {"kind": "square", "size": 32},
            "optimiser": {"lr": 0.01},
            "run": {"steps": 6, "batch": 2},
        }
    )


def _training(folder: Path) -> Path:
    recipe = _recipe()
    state = {
        "format": FORMAT,
        "digest": recipe_digest(recipe),
        "recipe": deciding(recipe),
        "sampler": {"digest": "d", "drawn": 4},
        "model": NETWORK.state_dict(),
        "random": random_state(torch.device("cpu")),
    }
    torch.save(state, folder / "step-00000002.pt")
    return folder / "step-00000002.pt"


def _read_training(path: Path) -> None:
    read_training_state(path, _recipe(), "d")


def _activations(folder: Path) -> Path:
    write_map(folder / "a--0.pt", torch.linspace(0, 1, 30).view(5, 6))
    return folder / "a--0.pt"


def _recipe_file(folder: Path) -> Path:
    text = "\n".join(
        [
            'base = "ssp-pascal"',
            'about = "grün"',
            'model.layers = ["layer2", "layer3"]',
            "optimiser.lr = 0.01",
            "run.steps = 6",
            "transform.flip = 0.5",
            "checkpoints.every = 2",
        ]
    )
    (folder / "recipe.toml").write_text(text, encoding="utf-8")
    return folder / "recipe.toml"


# ---- Engines


def _manifest(folder: Path) -> Path:
    for name in (engine.ENCODE, engine.MATCH):
        (folder / name).write_bytes(b"graph")
    digest = engine.file_digest(folder / engine.ENCODE)
    image = engine.TensorSpec("images", (1, 3, "height", "width"))
    maps = engine.TensorSpec("layer2", (1, 6, "h", "w"))
    prototypes = engine.TensorSpec("prototypes", (1, 2, 6))
    logits = engine.TensorSpec("logits", (1, 2, "h", "w"))
    engine.Manifest(
        "ssp", {"encoder": "resnet18", "layers": "layer2", "weights": "w"}, {"rounds": 2},
        engine.GraphSpec(engine.ENCODE, digest, (image,), (maps,)),
        engine.GraphSpec(engine.MATCH, digest, (maps, prototypes), (logits,)),
        2, 1, ("height", "width"), (prototypes,),
        engine.Preprocessing("aspect", 96, (0.5, 0.5, 0.5), (0.2, 0.2, 0.2)),
        engine.Output(True, True, 0, False, "background"), "fp32",
        engine.Check(1e-6, 1e-6, 100.0, 2, 40.0), engine.Cost(60.0, 59.5, 3, 9), "0" * 64,
        {"fastfss": "0"},
    ).write(folder)  # fmt: skip
    return folder / engine.MANIFEST


def _read_manifest(path: Path) -> None:
    found = engine.Manifest.read(path.parent)
    assert str(found) and found.digest
    for spec in (*found.encode.inputs, *found.maps, *found.match.outputs, *found.task):
        assert isinstance(spec.torch_dtype, torch.dtype)
    found.output.enlarged(torch.zeros(1, 2, 4, 4), (8, 8), (16, 16))
    with suppress(ValueError):
        found.check_tensors(Task("ssp", {"prototypes": torch.rand(1, 2, 6)}))


# ---- Videos and annotations


@cache
def _video() -> dict[str, bytes]:
    from tempfile import TemporaryDirectory

    truth = clip(4)[1]
    one = session(4)
    one.add_labels(0, truth[0])
    image, mask = clip(1, seed=3)
    one.add_support(image[0], {1: mask[0]}, name="photo")
    list(one.propagate(0, last=2))
    one.add_clicks(2, 1, [(24, 20)])
    one.add_object("second")
    one.undo()
    with TemporaryDirectory() as folder:
        one.save(Path(folder))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def _session(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for place, data in _video().items():
            (folder / place).parent.mkdir(exist_ok=True)
            (folder / place).write_bytes(data)
        return folder / name

    return make


def _read_session(path: Path) -> None:
    folder = path.parents[1] if path.parent.name == "images" else path.parent
    one = session(4, workspace=folder)
    for frame in one.frames:
        one.masks(frame)
    while one.can_undo:
        one.undo()


def _annotation(folder: Path) -> Path:
    said = Annotation().area(torch.eye(12, dtype=torch.uint8)).point(1.5, 2, width=4)
    said = said.stroke([(3, 3), (9, 8)], positive=False).box(1, 2, 9, 10)
    (folder / "said.json").write_text(said.to_json())
    return folder / "said.json"


def _read_annotation(path: Path) -> None:
    said = load_annotation(path)
    try:
        said.rasterize((12, 12))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    assert Annotation.from_json(said.to_json()).positive == said.positive


def _scribbles(folder: Path) -> Path:
    text = '{"scribbles": [[{"path": [[0.1, 0.2], [0.4, 0.5]], "object_id": 1}], []]}'
    (folder / "scribbles.json").write_text(text)
    return folder / "scribbles.json"


def _exported(name: str, kind: Literal["coco", "ytvis", "cvat"]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        one = session(4)
        for frame in range(2):
            one.add_labels(frame, clip(4)[1][frame])
        return one.export(folder / name, kind)

    return make


def _polygons(folder: Path) -> Path:
    plain = {
        "images": [{"id": 1, "file_name": "00000.jpg", "height": 60, "width": 90}],
        "categories": [{"id": 1, "name": "cow"}],
        "annotations": [
            {
                "id": 1,
                "image_id": 1,
                "category_id": 1,
                "segmentation": [[10, 10, 40.5, 10, 40.5, 30], [50, 5, 60, 5, 60, 20, 50, 20]],
            }
        ],
    }
    (folder / "polygons.json").write_text(json.dumps(plain))
    return folder / "polygons.json"


def _read_export(load: Callable[[VideoSession, Path], list[int]]) -> Callable[[Path], None]:
    def read(path: Path) -> None:
        one = session(4)
        try:
            frames = load(one, path)
        except CONTRACT:
            assert not one.frames, "an error, and half of it done"
            raise
        assert frames

    return read


# ---- Sets, protocols, results


def _episodes(folder: Path) -> Path:
    listed = (ListedEpisode((1,), ((3, 4),), 2, 0), ListedEpisode((2,), ((0, 1),), 5, 1))
    EpisodeList("folder", "digest", (1, 2), listed).save(folder / "episodes.json")
    return folder / "episodes.json"


def _read_episodes(path: Path) -> None:
    images: Any = SimpleNamespace(digest="digest", name="folder", root="here", items=range(6))
    found = EpisodeList.load(path, images)
    assert found.digest
    with suppress(ValueError):
        found.check_fold((1, 2), shots=2, ways=1)


def _folder(name: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        for number in range(3):
            image, mask = (folder / kind / f"{number}.png" for kind in ("images", "masks"))
            write_pair(image, mask, label_map(9, 12, [0, 1, 2]))
        (folder / "classes.txt").write_text("grün\ncow\n", encoding="utf-8")
        (folder / "index.json").write_text('{"cow": ["0", "1"]}')
        open_folder(folder)
        return folder / name

    return make


def _read_folder(path: Path) -> None:
    images = open_folder(path.parent)
    assert images.digest and images.index(1) is not None
    for number in range(len(images.items)):
        images.image(number), images.labels(number)


def _journal(folder: Path) -> Path:
    queries = [folder / "a.png", folder / "b.png"]
    for query in queries:
        query.write_bytes(b"image")
    with PredictionFolder(folder / "out", {"size": 3, "ways": [{"name": "x"}]}) as made:
        pending = made.plan(queries)
        made.begin(2)
        for one in pending:
            one.mask.write_bytes(b"m"), one.overlay.write_bytes(b"o")
            made.add(one, one.path.stat(), {"size": [1, 2], "ways": [], "seconds": 0.1})
        made.report(failed=[], pending=0)
    return folder / "out" / "predictions.jsonl"


def _read_journal(path: Path) -> None:
    queries = [path.parents[2] / "whole" / name for name in ("a.png", "b.png")]  # as recorded
    settings = {"size": 3, "ways": [{"name": "x"}]}
    with PredictionFolder(path.parent, settings) as found:
        left = found.plan(queries)
        assert all(one.mask.parent == path.parent for one in left)
        found.begin(len(left))
        found.report(failed=[], pending=len(left))
        assert found.count_missing(queries) == len(left)


TARGETS = {
    "png": Target(_picture("a.png", "RGB"), _image),
    "jpg": Target(_picture("a.jpg", "RGB"), _image),
    "palette": Target(_picture("a.png", "P", transparency=1), _image),
    "mask-palette": Target(_picture("a.png", "P"), _mask),
    "mask-grey": Target(_picture("a.png", "L"), _mask),
    "mask-16": Target(_picture("a.png", "I;16"), _mask),
    "safetensors": Target(_weights, _read_weights, HEADER),
    "pth": Target(_torch_weights(zipped=True), _read_weights),
    "pth-legacy": Target(_torch_weights(zipped=False), _read_weights),
    "task": Target(_task, _read_task, HEADER),
    "training": Target(_training, _read_training),
    "activations": Target(_activations, lambda path: void(read_map(path))),
    "recipe": Target(_recipe_file, lambda path: void(load_recipe(path)), TOML, named=False),
    "manifest": Target(_manifest, _read_manifest, JSON),
    "video-about": Target(_session("session.json"), _read_session, JSON),
    "video-events": Target(_session("events.jsonl"), _read_session, JSON),
    "video-results": Target(_session("results.jsonl"), _read_session, JSON),
    "annotation": Target(_annotation, _read_annotation, JSON),
    "scribbles": Target(_scribbles, lambda path: void(read_scribbles(path)), JSON),
    "coco": Target(_exported("a.json", "coco"), _read_export(load_coco), JSON),
    "ytvis": Target(_exported("a.json", "ytvis"), _read_export(load_coco), JSON),
    "polygons": Target(_polygons, _read_export(load_coco), JSON),
    "cvat": Target(_exported("a.xml", "cvat"), _read_export(load_cvat)),
    "episodes": Target(_episodes, _read_episodes, JSON),
    "classes": Target(_folder("classes.txt"), _read_folder, named=False),
    "folder-list": Target(_folder("index.json"), _read_folder, JSON),
    "journal": Target(_journal, _read_journal, JSON),
}


def void(_: object) -> None:
    """Nothing more is done with it."""
