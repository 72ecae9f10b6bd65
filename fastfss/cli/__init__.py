"""The command line: ``fastfss COMMAND``, one module a command."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from fastfss.allocation import keep_freed_memory
from fastfss.errors import MissingExtraError, import_extra

if TYPE_CHECKING:
    import typer

# Bad input and bad usage, as argparse and typer have it; 1 means that some queries failed.
_EXIT_ERROR = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program.

    Errors of the library come out as one line on stderr; ``--debug`` shows where they arose.

    Args:
        argv: the arguments after the program's name; the process's own by default.

    Returns:
        The exit code.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    keep_freed_memory()
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            build_app()(args=arguments, prog_name="fastfss")
        except SystemExit as stop:
            return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except (
            ValueError,
            TypeError,
            OSError,
            NotImplementedError,
            MissingExtraError,
        ) as error:
            if "--debug" in arguments:
                raise
            print(f"error: {_one_line(error)}", file=sys.stderr)
            return _EXIT_ERROR
    return 0


def build_app() -> typer.Typer:
    """Make the typer application with all commands.

    Raises:
        MissingExtraError: typer or rich is not installed.
    """
    for package in ("typer", "rich"):
        import_extra(package, extra="cli", purpose="the fastfss command")
    import typer

    from fastfss.cli.bench import make_bench_app
    from fastfss.cli.cam import cam
    from fastfss.cli.data import make_data_app
    from fastfss.cli.demo import demo
    from fastfss.cli.engines import make_engines_app
    from fastfss.cli.env import env
    from fastfss.cli.eval import evaluate_command
    from fastfss.cli.export import export
    from fastfss.cli.label import label
    from fastfss.cli.models import models
    from fastfss.cli.options import ManyValuesCommand, program
    from fastfss.cli.predict import predict
    from fastfss.cli.serve import serve
    from fastfss.cli.train import train
    from fastfss.cli.video import video

    app = typer.Typer(
        no_args_is_help=True,
        add_completion=False,
        # Plain help and errors: they go into bug reports and log files.
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )

    app.callback()(program)
    app.command(cls=ManyValuesCommand)(predict)
    app.command(cls=ManyValuesCommand)(label)
    app.command()(models)
    app.command()(demo)
    app.command()(env)
    app.command("eval")(evaluate_command)
    app.command()(train)
    app.command(cls=ManyValuesCommand)(export)
    app.add_typer(make_engines_app(), name="engines")
    app.command()(cam)
    app.command(cls=ManyValuesCommand)(video)
    app.command()(serve)
    app.add_typer(make_data_app(), name="data")
    app.add_typer(make_bench_app(), name="bench")
    return app


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return "; ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)
