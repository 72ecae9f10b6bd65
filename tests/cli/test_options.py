from __future__ import annotations

import sys
import warnings

import pytest

import fastfss
from fastfss.cli import main
from fastfss.cli.making import method_options
from fastfss.cli.options import repeat_flags


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("--query a b c", "--query a --query b --query c"),
        ("--query a --query b", "--query a --query b"),
        ("--support i m i m --out o", "--support i --support m --support i --support m --out o"),
        ("--task t u --no-refine --query q", "--task t --task u --no-refine --query q"),
        ("--query=a --out o", "--query=a --out o"),
        ("--query --out o", "--query --out o"),
        ("", ""),
    ],
)
def test_list_options_take_several_values(written, meant):
    assert repeat_flags(written.split()) == meant.split()


def test_options_of_a_method_are_read_as_what_they_look_like():
    written = ["variant=graph", "refine_time=5", "alpha=0.5", "text=a=b"]
    assert method_options(written, refine=False) == {
        **{"refine": False, "variant": "graph", "refine_time": 5, "alpha": 0.5, "text": "a=b"}
    }
    values = method_options(["a=True", "b=false", "c=1"], refine=None)
    assert [type(value) for value in values.values()] == [bool, bool, int]


def test_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fastfss {fastfss.__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("predict --support a.png --query q --out o", "--support: expected an image and its mask"),
        ("predict --support a b c --query q --out o", "got a b c"),
        ("predict --support=a --support=b --support=c --query q --out o", "got 3 files"),
        ("predict --support a b --query q", "--query and --out belong together"),
        ("predict --support a b --out o", "--query and --out belong together"),
        ("predict --support a b", "nothing to do"),
        ("predict --query q --out o", "--support, --support-folder or --task, got none"),
        ("predict --task t --name cow --query q --out o", "--name names the class of --support"),
        ("predict --task t --value 1 --query q --out o", "--value reads masks"),
        ("predict --task t --save-task u", "--save-task saves one class"),
        ("predict --support a b --query q --out o --size 0", "Invalid value for '--size'"),
        ("predict --support a b --query q --out o --threads x", "Invalid value for '--threads'"),
        ("predict --support a b --query q --out o --option x", "--option: expected NAME=VALUE"),
        ("predict --support a b --query q --out o --option =1", "--option: expected NAME=VALUE"),
        (
            "predict --support a b --query q --out o --refine --option refine=false",
            "--option: refine is given twice",
        ),
        ("predict --nonsense", "--nonsense"),
        ("nonsense", "'nonsense'"),
    ],
)
def test_wrong_usage_is_explained_with_exit_code_2(capsys, arguments, message):
    assert main(arguments.split()) == 2
    captured = capsys.readouterr()
    assert message in " ".join(captured.err.split())
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("package", ["typer", "rich"])
def test_missing_extra_is_one_line_with_exit_code_2(capsys, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["--version"]) == 2
    assert capsys.readouterr().err == (
        f'error: the fastfss command needs {package}: pip install "fastfss[cli]"\n'
    )


def test_debug_shows_the_traceback(tmp_path):
    arguments = ["predict", "--support", "absent", "absent", "--query", str(tmp_path), "--out", "o"]
    with pytest.raises(ValueError, match="a folder with images"):
        main([*arguments, "--debug"])


def test_warnings_are_lines_and_the_filters_come_back(capsys, monkeypatch):
    def warn() -> None:
        warnings.warn("the weights are random", stacklevel=1)

    monkeypatch.setattr("fastfss.cli.build_app", lambda: lambda **_: warn())
    before = warnings.showwarning
    assert main([]) == 0
    assert capsys.readouterr().err == "warning: the weights are random\n"
    assert warnings.showwarning is before


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("missing keys:\n  a\n  b"), "error: missing keys:; a; b\n"),
        (
            OSError(28, "No space left on device", "x.png"),
            "error: x.png: No space left on device\n",
        ),
        (TypeError("image: expected"), "error: image: expected\n"),
    ],
)
def test_errors_of_the_library_are_one_line(capsys, monkeypatch, error, line):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("fastfss.cli.build_app", lambda: fail)
    assert main([]) == 2
    assert capsys.readouterr().err == line
