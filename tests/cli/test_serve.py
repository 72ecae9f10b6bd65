"""`fastfss serve`, as a program; its page is tested in tests/app."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from fastfss.cli import main


def started(*options: object, folder: Path) -> tuple[subprocess.Popen[str], str]:
    command = [sys.executable, "-m", "fastfss", "serve", "--port", "0", *map(str, options)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    assert process.stdout is not None
    found = re.search(r"serving (http://\S+)", process.stdout.readline())
    assert found, process.communicate()
    return process, found[1]


def answer(address: str, **headers: str) -> bytes:
    with urllib.request.urlopen(urllib.request.Request(address, headers=headers)) as found:
        return found.read()


@pytest.mark.parametrize(
    ("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["ctrl-c", "term"]
)
def test_it_serves_until_it_is_stopped_and_leaves_nothing(tmp_path, how, code):
    process, address = started(folder=tmp_path)
    try:
        assert address.startswith("http://127.0.0.1:")
        assert b"<title>fastfss</title>" in answer(address)
        assert len(json.loads(answer(f"{address}api/sources"))["sources"]) == 2
    finally:
        process.send_signal(how)
        _, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors
    assert process.returncode == code, errors
    assert not list(tmp_path.glob("fastfss-serve-*"))


def test_other_hosts_need_the_token_that_is_printed(tmp_path):
    process, address = started("--host", "0.0.0.0", "--workspace", tmp_path / "w", folder=tmp_path)
    try:
        bare, _, token = address.partition("?token=")
        bare = bare.replace("0.0.0.0", "127.0.0.1")
        assert len(token) >= 16
        with pytest.raises(urllib.error.HTTPError, match="401"):
            answer(f"{bare}api/sources")
        assert answer(f"{bare}api/sources", Authorization=f"Bearer {token}")
    finally:
        process.terminate()
        process.communicate(timeout=60)
    assert (tmp_path / "w" / "sessions").is_dir()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["absent.mp4"], "absent.mp4"),
        (["--token", "short"], "at least 16 characters"),
        (["--label-studio", "studio"], "label_studio: expected http"),
        (["--device", "abacus"], "abacus"),
    ],
)
def test_bad_options_end_in_one_line(options, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--workspace", str(tmp_path / "w"), *options]) == 2
    errors = capfd.readouterr().err
    assert message in errors and errors.count("\n") == 1


def test_a_port_that_is_taken_is_named(capfd, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "--workspace", str(tmp_path), "--port", str(port)]) == 2
    assert f"127.0.0.1:{port}" in capfd.readouterr().err
