from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from fastfss import list_models
from fastfss.training import list_recipes, load_recipe, recipe_digest, recipe_from, train
from fastfss.training.steps import check_step
from tests.training.shapes import write_activations

# Encoder, maps, pixels and options with which a recipe of the method takes a second.
TINY: dict[str, tuple[str, list[str], int, dict[str, Any]]] = {
    "amp": ("resnet18", ["layer1", "layer2", "layer3"], 40, {}),
    "canet": ("resnet18", ["layer2", "layer3"], 40, {}),
    "dcama": ("resnet18", [], 64, {}),
    "denet": ("resnet18", ["layer3"], 40, {}),
    "guided-early": ("fcn_vgg16_lite", [], 40, {}),
    "guided-late": ("fcn_vgg16_lite", [], 40, {}),
    "hsnet": ("mobilenet_v2", [], 64, {}),
    "interactive-early": ("fcn_vgg16_lite", [], 40, {}),
    "interactive-late": ("fcn_vgg16_lite", [], 40, {}),
    "imr-hsnet": ("mobilenet_v2", [], 64, {}),
    "mlc": ("resnet18", ["layer2"], 40, {}),
    "panet": ("resnet18", ["layer2"], 40, {}),
    "pfenet": ("resnet18", ["layer2", "layer3", "layer4"], 41, {"pyramid": [1.0, 0.5]}),
    "pgnet": ("resnet18", ["layer2", "layer3"], 40, {}),
    "ppnet": ("resnet18", ["layer3"], 40, {}),
    "ssp": ("resnet18", ["layer2"], 40, {}),
}
MINIMAL: dict[str, Any] = {"about": "x", "model": {"method": "mlc"}, "data": {"set": "folder"}}


def tiny(name: str, shapes: Path) -> list[str]:
    """Overrides that keep a recipe's method, sampler, transform, optimiser and schedule."""
    encoder, layers, size, options = TINY[load_recipe(name).model.method]
    return [
        f"model.encoder={encoder}",
        "model.weights=random",
        f"model.layers={layers}",
        f"model.size={size}",
        *(f"model.options.{key}={value}" for key, value in options.items()),
        *(
            "data.set=folder",
            f"data.root={shapes}",
            "data.options={}",
            "data.folds=random",
            "data.reserved=0.25",
        ),
        *("data.minimum=50", "data.skip_rare=true", "data.episodes=60"),
        f"transform.size={size}",
        # Images of their own sizes come one at a time.
        f"run.batch={1 if load_recipe(name).transform.kind == 'native' else 2}",
        *("run.accumulate=1", "run.steps=1", "run.epochs=0"),
        *("validation.episodes=1", "validation.minimum=20", "log.workers=0"),
    ]


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_makes_a_step(name: str, shapes: Path, tmp_path: Path) -> None:
    changes = tiny(name, shapes)
    if load_recipe(name).data.activations:
        changes.append(f"data.activations={write_activations(shapes, tmp_path / 'activations')}")
    recipe = load_recipe(name, changes)
    result = train(recipe, tmp_path / "run", device="cpu", progress="off")
    assert result.steps == 1
    assert len(result.miou) == 1 and 0 <= result.miou[0][1] <= 100


def test_every_method_has_a_recipe() -> None:
    # Cue fusion has a program of its own, and label propagation nothing to train.
    wanted = set(list_models()) - {"cue-fusion", "propagation"}
    wanted |= {"interactive-early", "interactive-late"}  # no few-shot methods, but trained
    assert {load_recipe(name).model.method for name in list_recipes()} == wanted


@pytest.mark.parametrize("name", list_recipes())
def test_every_recipe_can_be_run_as_it_is(name: str) -> None:
    recipe = load_recipe(name)
    check_step(recipe)
    assert recipe.about
    assert name.startswith(recipe.model.method)
    assert recipe.data.root == "", "a user's folder"


def test_what_a_recipe_takes_from_its_base() -> None:
    base, built = load_recipe("ssp-pascal"), load_recipe("ssp-small")
    assert built.run.accumulate == 4 and built.run.precision == "bf16"
    assert dataclasses.replace(built.run, accumulate=1, precision="fp32") == base.run
    assert built.optimiser == base.optimiser


def test_a_base_may_be_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "first.toml").write_text('base = "mlc-pascal"\n[optimiser]\nlr = 0.5\n')
    (tmp_path / "second.toml").write_text('base = "first.toml"\n[run]\nbatch = 3\n')
    recipe = load_recipe(tmp_path / "second.toml")
    assert recipe.optimiser.lr == 0.5
    assert recipe.run.batch == 3
    assert recipe.run.steps == 6000


def test_bases_in_a_circle_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    with pytest.raises(ValueError, match="base: expected a recipe that is not built on this one"):
        load_recipe(tmp_path / "a.toml")


@pytest.mark.parametrize(
    "change, error, message",
    [
        ("optimiser.momentun=0.9", ValueError, r"optimiser\.momentun: .*'momentum' perhaps"),
        ("optimizer.lr=1", ValueError, r"optimizer: .*'optimiser' perhaps"),
        ("optimiser.lr=fast", TypeError, r"optimiser\.lr: expected a number, got 'fast'"),
        ("optimiser.lr=0", ValueError, r"optimiser\.lr: expected a positive number, got 0"),
        ("optimiser.lr=nan", ValueError, r"optimiser\.lr: expected a positive number, got nan"),
        ("optimiser.name=lion", ValueError, r"optimiser\.name: expected one of sgd, adam"),
        ("optimiser.betas=[0.9]", ValueError, r"optimiser\.betas: expected 2 values"),
        ("optimiser.groups=[{lr=2}]", ValueError, r"optimiser\.groups\.pattern: .*must be set"),
        ("run.batch=2.5", TypeError, r"run\.batch: expected a whole number, got 2\.5"),
        ("run.batch=true", TypeError, r"run\.batch: expected a whole number, got True"),
        ("run.batch=0", ValueError, r"run\.batch: expected at least 1, got 0"),
        ("run.seed=3", ValueError, r"either steps or epochs"),
        ("run=5", TypeError, r"run: expected a table, got 5"),
        ("run.ema=1", ValueError, r"run\.ema: expected 0 <= x < 1, got 1"),
        ("data.fold=4", ValueError, r"data\.fold: expected 0 to 3, got 4"),
        ("data.set=imagenet", ValueError, r"data\.set: expected one of pascal, coco"),
        ("transform.kind=native", ValueError, r"run\.batch: .*no part has images of two sizes"),
        ("validation.points=0", ValueError, r"validation\.points: .*dense.*, got 0"),
        ("validation.points=4000", ValueError, r"validation\.points: .*1 to validation\.minimum"),
        ("data.points=0", ValueError, r"data\.points: expected at least 1, got 0"),
        ("data.points=few", TypeError, r"data\.points: .*dense, random or a whole number"),
        ("data.ways=2", ValueError, r'data\.sampler: expected "class" for 2 ways'),
        ("schedule.kind=step", ValueError, r"schedule\.at: expected at least one step"),
        ("transform.scale=[1.2, 0.8]", ValueError, r"transform\.scale: expected 0 < low <= high"),
    ],
)
def test_bad_settings_are_named(
    change: str, error: type[Exception], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "own.toml"
    path.write_text('about = "x"\n[model]\nmethod = "mlc"\n[data]\nset = "folder"\n')
    with pytest.raises(error, match=message):
        load_recipe(path, [change])


@pytest.mark.parametrize("text", ["[model", "about = 'x'\nabout = 'y'"])
def test_what_is_no_toml_is_named(text: str, tmp_path: Path) -> None:
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"recipe .*own\.toml: expected TOML"):
        load_recipe(path)


@pytest.mark.parametrize("missing", ["about", "model", "data"])
def test_what_must_be_set_is_named(missing: str) -> None:
    with pytest.raises(ValueError, match=f"{missing}: .*must be set"):
        recipe_from({key: value for key, value in MINIMAL.items() if key != missing})


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    with pytest.raises(FileNotFoundError, match="did you mean 'ssp-pascal'"):
        load_recipe("ssp-pascall")


def test_a_cut_at_random_cannot_be_cached() -> None:
    with pytest.raises(ValueError, match=r"cache\.maps: .*cut at random"):
        load_recipe("ssp-pascal", ["cache.maps=fp16"])


@pytest.mark.parametrize(
    "recipe, change, message",
    [
        ("denet-pascal", "data.labels=none", r"data\.labels: expected 'ids' for denet"),
        ("amp-pascal", "data.sampler=query", r'data\.sampler: expected "single"'),
        ("hsnet-pascal", "data.shots=5", r"data\.shots: expected 1"),
        ("ppnet-semantic-pascal", "data.labels=none", r"data\.labels: expected 'base'"),
        ("ppnet-pascal", "model.options.variant=graph", r"model\.options\.variant: .*not drawn"),
        ("mlc-pascal", "model.options.latent_classes=50", r"model\.options\.latent_classes"),
        ("amp-pascal", "validation.protocol=denet", r"model\.options\.background: .* 'running'"),
        ("imr-hsnet-pascal", "validation.protocol=hsnet", r"validation\.protocol: expected none"),
        ("ssp-pascal", "data.sampler=interactive", r"data\.sampler: expected another for ssp"),
        ("interactive-late-pascal", "data.sampler=pairs", r"data\.sampler: .*for interactive-late"),
        ("guided-late-interactive-cpu", "data.shots=2", r"data\.shots: expected 1: the query"),
        (
            "guided-late-interactive-cpu",
            "validation.protocol=hsnet",
            r"validation\.protocol: .*none",
        ),
        ("ssp-pascal", "model.method=sspp", r"model\.method: expected one of amp"),
    ],
)
def test_episodes_that_a_method_cannot_use_are_named(
    recipe: str, change: str, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_step(load_recipe(recipe, [change]))


def test_without_held_out_classes_images_must_be_held_out() -> None:
    changes = ["data.folds=none", "data.reserved=0"]
    with pytest.raises(ValueError, match=r"validation\.every: expected classes or images"):
        load_recipe("hsnet-cpu", changes)
    assert load_recipe("hsnet-cpu", [*changes, "validation.every=0"]).validation.every == 0


def test_only_what_decides_the_outcome_counts() -> None:
    recipe = load_recipe("ssp-pascal")
    same = ["data.root=/elsewhere", "log.workers=1", "checkpoints.every=7"]
    assert recipe_digest(load_recipe("ssp-pascal", same)) == recipe_digest(recipe)
    for change in ("optimiser.lr=2", "data.fold=1", "run.seed=3", "run.steps=9"):
        assert recipe_digest(load_recipe("ssp-pascal", [change])) != recipe_digest(recipe)
