"""``fastfss eval``: a method's figures by a published protocol."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.console import Console

from fastfss.cli.options import (
    BackboneOption,
    DebugOption,
    LayersOption,
    MethodOptions,
    layer_names,
    one_of,
)

if TYPE_CHECKING:
    from fastfss.data.sets import MaskSet
    from fastfss.interactive.refinement import RefinementName
    from fastfss.methods import FewShotSegmenter
    from fastfss.protocols.protocol import Protocol
    from fastfss.training.processes import Processes


def evaluate_command(
    protocol: Annotated[str, typer.Option(help="--list-protocols shows them.")] = "",
    data: Annotated[Path | None, typer.Option(help="The folder of the data set.")] = None,
    out: Annotated[Path | None, typer.Option(help="The folder for the results.")] = None,
    kind: Annotated[
        str | None,
        typer.Option(
            "--set",
            metavar="pascal|coco|fss1000|folder|davis2016|davis2017",
            help="Else the protocol's first one.",
        ),
    ] = None,
    part: Annotated[str | None, typer.Option(help="Of the set; else the protocol's.")] = None,
    fold: Annotated[str, typer.Option(metavar="N|all", help="Whose classes are novel.")] = "all",
    folds: Annotated[
        int, typer.Option(min=1, help="How many, of sets without published folds.")
    ] = 4,
    split_seed: Annotated[int, typer.Option(help="Of folds drawn at random.")] = 0,
    shots: Annotated[int, typer.Option(min=1)] = 1,
    ways: Annotated[int, typer.Option(min=1)] = 1,
    method: Annotated[str, typer.Option(help="The segmentation method.")] = "ssp",
    backbone: BackboneOption = None,
    layers: LayersOption = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|imagenet",
            help="A checkpoint or an encoder's weights; {fold} stands for the fold's number.",
        ),
    ] = None,
    size: Annotated[int | None, typer.Option(min=1, help="Pixels; else the method's.")] = None,
    option: MethodOptions = None,
    episodes: Annotated[
        int | None,
        typer.Option(
            min=1, help="Other than published: of a run, or of each class; objects; videos."
        ),
    ] = None,
    episodes_file: Annotated[
        Path | None, typer.Option(help="Episodes to read instead of drawing; of one fold.")
    ] = None,
    save_episodes: Annotated[
        Path | None, typer.Option(metavar="FILE.json", help="Where to write the episodes.")
    ] = None,
    lists: Annotated[Path | None, typer.Option(help="HSNet's published split lists.")] = None,
    original_size: Annotated[
        bool,
        typer.Option("--original-size", help="Count at the images' own size, as HSNet's option."),
    ] = False,
    no_flips: Annotated[
        bool, typer.Option("--no-flips", help="Without the random mirroring of denet.")
    ] = False,
    refinement: Annotated[
        str | None,
        typer.Option(
            metavar="none|guided|grabcut|edges",
            help="Of the protocols clicks (guided) and davis (none).",
        ),
    ] = None,
    batch: Annotated[
        int,
        typer.Option(min=1, help="Episodes of equal shapes that are segmented together."),
    ] = 1,
    pictures: Annotated[int, typer.Option(min=0, help="Worst episodes in the report.")] = 10,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda")] = "auto",
    list_protocols: Annotated[bool, typer.Option("--list-protocols")] = False,
    debug: DebugOption = False,
) -> None:
    """Evaluate a method: results.json and report.html in the output folder.

    Several processes: torchrun --nproc-per-node N -m fastfss eval ...; the figures stay the same.
    """
    from fastfss.atomic import check_writable
    from fastfss.cli import eval_davis
    from fastfss.cli.eval_clicks import ABOUT
    from fastfss.cli.making import method_options
    from fastfss.data.sets import open_set
    from fastfss.interactive.refinement import RefinementName
    from fastfss.protocols.episode_lists import EpisodeList, draw_episodes, fold_of
    from fastfss.protocols.protocol import PROTOCOLS, get_protocol
    from fastfss.training.processes import processes

    if list_protocols:
        for one in PROTOCOLS.values():
            typer.echo(f"{one.name:8} {one.about}")
        typer.echo(f"{'clicks':8} {ABOUT}")
        typer.echo(f"{'davis':8} {eval_davis.ABOUT}")
        typer.echo(f"{eval_davis.INTERACTIVE} {eval_davis.ABOUT_INTERACTIVE}")
        return
    if not protocol or data is None or out is None:
        raise typer.BadParameter("expected --protocol, --data and --out (--list-protocols helps)")
    if refinement is not None and protocol not in ("clicks", "davis"):
        raise typer.BadParameter(f"--refinement is of clicks and davis, got --protocol {protocol}")
    options = method_options(option or [], None)
    about: dict[str, Any] = {"method": method, "encoder": backbone, "layers": layers}
    about |= {"weights": weights, "size": size, "options": options}
    if protocol in ("clicks", "davis", eval_davis.INTERACTIVE):
        usual = "guided" if protocol == "clicks" else "none"
        with processes(device) as group:
            _run_sessions(
                protocol,
                lambda: _model(method, backbone, layers, weights, size, options, group),
                data,
                kind,
                part,
                about,
                size=size,
                count=episodes,
                seed=split_seed,
                refinement=one_of("--refinement", refinement or usual, get_args(RefinementName)),
                out=out,
                group=group,
            )
        return
    chosen = get_protocol(protocol)
    changed = []
    if original_size:
        chosen = chosen.at_original_size()
        changed.append("counted at the images' own size")
    if no_flips:
        chosen = chosen.without_flips()
        changed.append("images are not mirrored")
    named = kind or chosen.sets[0]
    images = open_set(named, data, part or chosen.part.get(named, "val"))
    numbers = _folds(fold, chosen, images, folds)
    if len(numbers) > 1 and (episodes_file or save_episodes):
        raise typer.BadParameter("an episodes file is of one fold: give --fold N")
    # All lists before any model, so that what is missing shows at once.
    if episodes_file is not None:
        listed = EpisodeList.load(episodes_file, images)
        novel = fold_of(chosen, images, numbers[0], splits=folds, split_seed=split_seed)
        listed.check_fold(novel, shots=shots, ways=ways)
        drawn = {numbers[0]: listed}
    else:
        drawn = {
            number: draw_episodes(
                chosen,
                images,
                number,
                shots=shots,
                ways=ways,
                episodes=episodes,
                splits=folds,
                split_seed=split_seed,
                lists=lists,
            )
            for number in numbers
        }
    if save_episodes is not None:
        drawn[numbers[0]].save(save_episodes)
    about |= {
        "shots": shots,
        "ways": ways,
        "splits": folds,
        "split_seed": split_seed,
        "lists": None if lists is None else str(lists),
        "changed": changed,
        "episodes_changed": episodes is not None or episodes_file is not None,
    }
    with processes(device) as group:
        if group.first:
            out.mkdir(parents=True, exist_ok=True)
            check_writable(out, "--out")
        group.wait()

        def build(number: int) -> FewShotSegmenter:
            path = None if weights is None else weights.replace("{fold}", str(number))
            return _model(method, backbone, layers, path, size, options, group)

        if weights is not None and "{fold}" in weights:
            for number in numbers[1:]:
                build(number)  # wrong weights of a later fold show before the first is evaluated
        _run(chosen, images, drawn, build, about, batch, pictures, out, group)


def _run_sessions(
    protocol: str,
    build: Callable[[], FewShotSegmenter],
    images: Path,
    kind: str | None,
    part: str | None,
    about: dict[str, Any],
    *,
    size: int | None,
    count: int | None,
    seed: int,
    refinement: RefinementName,
    out: Path,
    group: Processes,
) -> None:
    """Evaluate a method in sessions, of clicks or of videos; in one process."""
    from fastfss.atomic import check_writable
    from fastfss.cli import eval_davis
    from fastfss.cli.eval_clicks import run_clicks
    from fastfss.data.sets import open_set

    if group.count > 1:
        raise typer.BadParameter(f"--protocol {protocol} runs in one process")
    if protocol == "clicks":
        objects = open_set(kind or "folder", images, part or "val")
    else:
        videos = eval_davis.open_videos(kind, images, part)
    out.mkdir(parents=True, exist_ok=True)
    check_writable(out, "--out")
    model = build()
    if protocol == "clicks":
        run_clicks(model, objects, about, count=count, seed=seed, refinement=refinement, out=out)
        return
    shorter, fast = size or 480, model.for_inference()
    if protocol == eval_davis.INTERACTIVE:
        eval_davis.run_interactive(fast, videos, about, size=shorter, count=count, out=out)
    else:
        eval_davis.run_davis(
            fast, videos, about, size=shorter, count=count, refinement=refinement, out=out
        )


def _run(
    protocol: Protocol,
    images: MaskSet,
    drawn: dict[int, Any],
    build: Any,
    about: dict[str, Any],
    batch: int,
    pictures: int,
    out: Path,
    group: Processes,
) -> None:
    import fastfss
    from fastfss.cli.prediction_run import progress_bar
    from fastfss.protocols.evaluation import evaluate
    from fastfss.protocols.report import FoldResult, results, worst_pictures, write_results
    from fastfss.protocols.scores import fate_of_unseen

    folds = []
    weights: dict[str, str] = {}
    for number, episodes in drawn.items():
        model = build(number)
        weights[str(number)] = model.fingerprint()
        # The method's own size decides the figures too, where the protocol leaves it open.
        size = None if protocol.reading == "original" else protocol.size or model.size
        about["read_size"] = size
        share = -(-len(episodes.episodes) // group.count)
        with progress_bar(Console(stderr=True, quiet=not group.first)) as bar:
            shown_task = bar.add_task(f"fold {number}", total=share)
            advance = partial(bar.update, shown_task, advance=1)
            evaluation = evaluate(model, protocol, images, episodes, batch=batch, progress=advance)
        shown = []
        if group.first:
            shown = worst_pictures(model, protocol, images, episodes, evaluation, pictures)
            found = evaluation.figures
            fb = "" if found.fb_iou is None else f", FB-IoU {found.fb_iou:.2f}"
            low, high = found.interval
            typer.echo(f"fold {number}: mIoU {found.miou:.2f} ({low:.2f} to {high:.2f}){fb}")
            if unseen := evaluation.counts.unseen(episodes.classes):
                count = f"{len(unseen)} of {len(episodes.classes)} classes"
                names = ", ".join(images.classes[one] for one in unseen)
                fate = fate_of_unseen(protocol.figure)
                typer.echo(f"warning: {count} have no episode and {fate}: {names}", err=True)
        folds.append(FoldResult(number, episodes, evaluation, shown))
    if not group.first:
        return
    record = {"fastfss": fastfss.__version__, **about, "weights_digests": weights}
    plain = results(protocol, images, folds, record)
    write_results(out, plain, folds)
    if mean := plain.get("mean"):
        typer.echo(f"mean of {mean['folds']} folds: mIoU {mean['miou']:.2f}")
    typer.echo(f"results: {out / 'results.json'}, {out / 'report.html'}")


def _folds(fold: str, protocol: Protocol, images: MaskSet, folds: int) -> list[int]:
    rule = protocol.fold_rule(images.name)
    count = 1 if rule == "all" else folds if rule == "random" else 4
    if fold == "all":
        return list(range(count))
    if not fold.isdigit() or int(fold) >= count:
        raise typer.BadParameter(f"--fold: expected 0 to {count - 1} or all, got {fold}")
    return [int(fold)]


def _model(
    method: str,
    backbone: str | None,
    layers: str | None,
    weights: str | None,
    size: int | None,
    options: dict[str, Any],
    group: Processes,
) -> FewShotSegmenter:
    from fastfss.cli.making import made_model

    tell = "figures" if group.first else None
    model = made_model(
        method, backbone, layer_names(layers), weights, options, size=size, tell=tell
    )
    return model.to(group.device).eval()
