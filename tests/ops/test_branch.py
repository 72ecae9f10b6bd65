"""Branches of a CUDA graph: their order, and what they compute."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fastfss.ops import _branch
from fastfss.ops._branch import Branch
from tests.kernels.helpers import captured

CUDA = torch.device("cuda", 0)


class FakeStream:
    """Notes what waits for what."""

    def __init__(self, name: str, log: list[str]) -> None:
        self.name, self.log, self.device = name, log, CUDA

    def wait_stream(self, other: FakeStream) -> None:
        self.log.append(f"{self.name} waits for {other.name}")


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a GPU that is not there, whose current stream is captured."""
    log: list[str] = []
    current = [FakeStream("graph", log)]

    def set_stream(stream: FakeStream) -> None:
        current[0] = stream
        log.append(f"on {stream.name}")

    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        is_current_stream_capturing=lambda: True,
        Stream=lambda device: FakeStream("branch", log),
        current_stream=lambda device: current[0],
        set_stream=set_stream,
    )
    fake = SimpleNamespace(cuda=cuda, compiler=torch.compiler)
    monkeypatch.setattr(_branch, "torch", fake)
    return log


def test_a_branch_waits_for_what_came_before_and_is_waited_for_once(log):
    with (branch := Branch(CUDA)):
        log.append("work")
    log.append("other work")
    branch.join()
    assert log == [
        *("branch waits for graph", "on branch", "work", "on graph"),
        *("other work", "graph waits for branch"),
    ]


def test_an_error_within_leaves_the_stream_as_it_was(log):
    with pytest.raises(RuntimeError, match="no memory"), Branch(CUDA):
        raise RuntimeError("no memory")
    assert log[-1] == "on graph"


def test_outside_of_a_graph_all_is_done_in_its_turn(log, monkeypatch):
    monkeypatch.setattr(_branch.torch.cuda, "is_current_stream_capturing", lambda: False)
    for device in (CUDA, torch.device("cpu")):
        with (branch := Branch(device)):
            pass
        branch.join()
    assert log == []


@pytest.mark.gpu
def test_a_graph_of_branches_computes_what_their_turns_do():
    x = torch.randn(512, 512, device="cuda")

    def compute() -> torch.Tensor:
        with (left := Branch(x.device)):
            a = (x @ x).sin()
            with (inner := Branch(x.device)):
                b = (a + 1).cos()
            a = a * 2
            inner.join()
            a = a + b
        c = x.exp()
        left.join()
        return a + c

    wanted = compute()
    replay = captured(compute)
    for scale in (1, 0.5):
        x.mul_(scale)
        found = replay()
        torch.testing.assert_close(found, wanted if scale == 1 else compute())
