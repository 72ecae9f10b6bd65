"""``fastfss bench``: what benchmarks measured, as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastfss.atomic import atomic_path, check_writable, write_text_atomically
from fastfss.cli.options import DebugOption

_REFUSED = 1


def make_bench_app() -> typer.Typer:
    """The commands below ``fastfss bench``."""
    app = typer.Typer(
        no_args_is_help=True,
        rich_markup_mode=None,
        help="Benchmarks: a page of what they measured.",
    )
    # With a single command typer would leave out its name.
    app.callback()(_bench)
    app.command("report")(report)
    return app


def _bench() -> None:
    """Benchmarks: a page of what they measured."""


def report(
    results: Annotated[
        Path, typer.Option(metavar="FOLDER", help="The JSON files of bench/results.")
    ] = Path("bench/results"),
    out: Annotated[
        Path,
        typer.Option(metavar="FILE.md", help="The page; plots go to the folder of its name."),
    ] = Path("docs/benchmarks.md"),
    tests: Annotated[
        Path | None,
        typer.Option(
            metavar="JUNIT.xml",
            help="Of pytest --junitxml: rows of what has a failed test are refused.",
        ),
    ] = None,
    debug: DebugOption = False,
) -> None:
    """Write one page, with plots, of all rows that benchmarks left.

    The same rows give the same bytes. What cannot be read is named on stderr and on the page. The
    exit code is 1 if rows are refused because their tests are red.

    Example: pytest --junitxml junit.xml; fastfss bench report --tests junit.xml
    """
    from fastfss.benchmarks import plots
    from fastfss.benchmarks.outcomes import read_outcomes, refuse_red
    from fastfss.benchmarks.page import Tests, render, usable
    from fastfss.benchmarks.rows import LeftOut, read_results

    if out.suffix != ".md":
        raise typer.BadParameter(f"--out: expected a file ending in .md, got '{out}'")
    outcomes = None if tests is None else read_outcomes(tests)
    rows, left_out = read_results(results)
    rows, odd = usable(rows)
    left_out += odd
    refused: list[LeftOut] = []
    state = None
    if tests is not None and outcomes is not None:
        rows, refused, untested = refuse_red(rows, outcomes)
        state = Tests(tests.name, outcomes, untested)
    for one in left_out:
        typer.echo(f"left out: {one}", err=True)
    for one in refused:
        typer.echo(f"refused: {one}", err=True)
    drawn = plots.draw(rows)
    folder = out.with_suffix("")
    page = render(
        rows,
        drawn=drawn,
        folder=folder.name,
        tests=state,
        refused=refused,
        left_out=left_out,
    )
    check_writable(out.absolute().parent, "--out")
    folder.mkdir(exist_ok=True)
    # The page last: all that it shows is there before.
    for name, svg in drawn.items():
        with atomic_path(folder / name) as temporary:
            temporary.write_bytes(svg)
    write_text_atomically(out, page)
    for name in plots.NAMES:
        if name not in drawn:
            (folder / name).unlink(missing_ok=True)
    typer.echo(
        f"{out}: {len(rows)} rows, {len(drawn)} plots, {len(left_out)} left out, "
        f"{len(refused)} refused"
    )
    if refused:
        raise typer.Exit(_REFUSED)
