from __future__ import annotations

import stat

import pytest

from fastfss.atomic import TEMPORARY_SUFFIX, atomic_path, remove_temporaries, write_text_atomically


def test_file_appears_only_when_the_block_ends(tmp_path):
    target = tmp_path / "result.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert not target.exists()
        assert temporary.parent == tmp_path
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("interruption", [ValueError, KeyboardInterrupt])
def test_failure_leaves_the_old_file_and_no_temporary(tmp_path, interruption):
    target = tmp_path / "result.txt"
    target.write_text("old")
    with pytest.raises(interruption), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise interruption
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_new_file_has_ordinary_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    write_text_atomically(tmp_path / "atomic", "x")
    assert stat.S_IMODE((tmp_path / "atomic").stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_text_is_utf8_with_newlines_as_given(tmp_path):
    write_text_atomically(tmp_path / "a", "grün\n")
    assert (tmp_path / "a").read_bytes() == "grün\n".encode()


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_text_atomically(tmp_path / "absent" / "a", "x")


def test_what_a_killed_writer_left_is_removed(tmp_path):
    keep = tmp_path / "result.png"
    keep.touch()
    (tmp_path / f".result.png.0a1b2c3d{TEMPORARY_SUFFIX}").touch()
    remove_temporaries(tmp_path)
    assert list(tmp_path.iterdir()) == [keep]
