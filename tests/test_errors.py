from __future__ import annotations

import pytest

from fastfss.errors import MissingExtraError, expected, expected_kind, import_extra


def test_import_extra_returns_the_module():
    assert import_extra("json.decoder", extra="cli", purpose="A test").__name__ == "json.decoder"


def test_missing_package_is_named_with_the_command_that_installs_it():
    with pytest.raises(
        MissingExtraError, match=r'^A test needs absent: pip install "fastfss\[cli\]"$'
    ):
        import_extra("absent.part", extra="cli", purpose="A test")


def test_broken_package_keeps_its_own_error(tmp_path, monkeypatch):
    (tmp_path / "broken_package.py").write_text("import absent_dependency")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="absent_dependency") as caught:
        import_extra("broken_package", extra="cli", purpose="A test")
    assert not isinstance(caught.value, MissingExtraError)


def test_errors_say_the_argument_what_was_expected_and_what_came():
    for make, kind in ((expected, ValueError), (expected_kind, TypeError)):
        error = make("size", "a positive number", "-1")
        assert type(error) is kind
        assert str(error) == "size: expected a positive number, got -1"
