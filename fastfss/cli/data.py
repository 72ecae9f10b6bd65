"""``fastfss data``: data sets from their official archives, and what there is of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fastfss.cli.options import DebugOption, one_of
from fastfss.cli.prediction_run import progress_bar
from fastfss.data.prepare.archives import Report
from fastfss.data.prepare.check import Findings, check_set

# The set is usable, but not what was published.
_EXIT_PROBLEMS = 1

RootOption = Annotated[Path, typer.Option(help="The folder that gets the set, or has it.")]
ArchivesOption = Annotated[
    list[Path] | None,
    typer.Option(help="A folder with the archives; may be repeated. By default the root."),
]
SubsetOption = Annotated[
    bool,
    typer.Option("--subset", help="The set is meant to be a part: other numbers are no error."),
]


def make_data_app() -> typer.Typer:
    """The commands below ``fastfss data``."""
    prepare = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Unpack official archives, make masks, check the result. A killed run goes on.",
    )
    prepare.command("pascal")(_prepare_pascal)
    prepare.command("coco")(_prepare_coco)
    prepare.command("fss1000")(_prepare_fss1000)
    prepare.command("davis")(_prepare_davis)
    data = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Data sets: made from their official archives, and checked.",
    )
    data.add_typer(prepare, name="prepare")
    data.command("check")(_check)
    return data


def _prepare_pascal(
    root: RootOption,
    archives: ArchivesOption = None,
    subset: SubsetOption = False,
    debug: DebugOption = False,
) -> None:
    """PASCAL-5i: VOCtrainval_11-May-2012.tar and SBD's benchmark.tgz."""
    from fastfss.data.prepare.pascal import prepare_pascal

    _prepare(
        "pascal", root, subset, lambda report: prepare_pascal(root, archives or [root], report)
    )


def _prepare_coco(
    root: RootOption,
    archives: ArchivesOption = None,
    parts: Annotated[str, typer.Option(help="train, val, or both with a comma.")] = "train,val",
    crowds: Annotated[
        str, typer.Option(metavar="keep|skip", help="Whether crowd regions count as their class.")
    ] = "keep",
    overlaps: Annotated[
        bool, typer.Option("--overlaps", help="Also a mask of each class by itself, as in PANet.")
    ] = False,
    subset: SubsetOption = False,
    debug: DebugOption = False,
) -> None:
    """COCO-20i: train2014.zip, val2014.zip and annotations_trainval2014.zip."""
    from fastfss.data.prepare.coco import prepare_coco

    kept = one_of("--crowds", crowds, ("keep", "skip")) == "keep"
    _prepare(
        "coco",
        root,
        subset,
        lambda report: prepare_coco(
            root,
            archives or [root],
            report,
            parts=[part.strip() for part in parts.split(",")],
            crowds=kept,
            overlaps=overlaps,
        ),
    )


def _prepare_fss1000(
    root: RootOption,
    archives: ArchivesOption = None,
    lists: Annotated[
        Path | None,
        typer.Option(help="A folder with trn.txt, val.txt, test.txt; by default the archives'."),
    ] = None,
    subset: SubsetOption = False,
    debug: DebugOption = False,
) -> None:
    """FSS-1000: fewshot_data.zip (or FSS-1000.zip), and the lists of its classes."""
    from fastfss.data.prepare.fss1000 import prepare_fss1000

    _prepare(
        "fss1000",
        root,
        subset,
        lambda report: prepare_fss1000(root, archives or [root], report, lists=lists),
    )


def _prepare_davis(
    root: RootOption,
    archives: ArchivesOption = None,
    subset: SubsetOption = False,
    debug: DebugOption = False,
) -> None:
    """DAVIS at 480p: DAVIS-data.zip (2016), DAVIS-2017-trainval-480p.zip and its test sets."""
    from fastfss.data.prepare.davis import prepare_davis

    places = archives or [root]
    _prepare("davis", root, subset, lambda report: prepare_davis(root, places, report))


def _check(
    kind: Annotated[str, typer.Argument(help="pascal, coco, fss1000, davis or folder.")],
    root: RootOption,
    subset: SubsetOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what there is of a set, count it, and name the first problems."""
    with _progress() as report:
        findings = check_set(kind, root, report, subset=subset)
    _tell(findings)


def _prepare(kind: str, root: Path, subset: bool, work: Callable[[Report], Path]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with _progress() as report:
        folder = work(report)
        findings = check_set(kind, folder, report, subset=subset)
    _tell(findings)


def _tell(findings: Findings) -> None:
    for line in findings.lines:
        typer.echo(line)
    for problem in findings.problems:
        typer.echo(f"problem: {problem}", err=True)
    if findings.problems:
        raise typer.Exit(_EXIT_PROBLEMS)


@contextmanager
def _progress() -> Iterator[Report]:
    """Bars on a terminal; elsewhere one line when a step begins."""
    console = Console(stderr=True)
    if not console.is_terminal:
        begun: set[str] = set()

        def lines(text: str, done: int, total: int) -> None:
            if text not in begun and total:
                begun.add(text)
                print(f"{text} ({total})" if total > 1 else text, file=sys.stderr, flush=True)

        yield lines
        return
    with progress_bar(console) as bars:
        tasks = {}

        def bar(text: str, done: int, total: int) -> None:
            if text not in tasks:
                tasks[text] = bars.add_task(text, total=total)
            bars.update(tasks[text], completed=done, total=total)

        yield bar
