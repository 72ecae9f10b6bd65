"""The processes of ``fastfss label`` on one machine: shards handed out, dead processes replaced."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import warnings
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

import torch

from fastfss.cli.label_shard import REQUEUES, Labelling, Outcome, Shard

# So many processes may die one after the other before they are ready.
_STARTS = 3
# How long a process that has nothing more to do gets for ending by itself.
_GRACE = 5.0


class Job(Protocol):
    """What each process runs; `fastfss.cli.label_shard.LabelJob`. It is sent by pickle."""

    def start(self, device: str) -> Labelling:
        """Make the process ready to label shards on a device."""


@dataclass(frozen=True)
class Watch:
    """Who is told what happens.

    Attributes:
        ready: the first process is ready; called before any shard begins, with its warnings.
        images: so many images are done; negative where a process died over them.
        done: a shard is done.
        died: a process died, said as a sentence.
    """

    ready: Callable[[Sequence[str]], None]
    images: Callable[[int], None]
    done: Callable[[Outcome], None]
    died: Callable[[str], None]


@dataclass
class _Worker:
    process: Any
    connection: Connection
    device: str
    ready: bool = False
    shard: Shard | None = None
    images: int = 0


def worker_devices(device: str, workers: int | None) -> list[str]:
    """The device of each process: one a GPU or a core, unless `workers` says how many.

    Args:
        device: auto (GPUs where there are any), cpu, cuda (all GPUs), or one device.
        workers: how many processes.
    """
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    if gpus:
        return [f"cuda:{number % gpus}" for number in range(workers or gpus)]
    if device not in ("auto", "cpu"):
        return [device] * (workers or 1)
    return ["cpu"] * (workers or core_count())


def core_count() -> int:
    """The cores that this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux alone
    return len(allowed(0)) if allowed is not None else os.cpu_count() or 1


def run_here(job: Job, devices: Sequence[str], shards: Sequence[Shard], watch: Watch) -> None:
    """Label shards with one process a device; a shard whose process dies goes to another one.

    Args:
        job: what each process runs.
        devices: one a process.
        shards: what is to be done.
        watch: who is told.

    Raises:
        ChildProcessError: processes die before they are ready, or a shard kills every one.
        BaseException: what a process raises, of the model, the tasks or the disk.
    """
    queue = deque(shards)
    deaths: dict[int, int] = {}
    left, unready, told = len(shards), 0, False
    workers = [_started(job, device) for device in devices[: len(shards)]]
    try:
        while left:
            talking = wait([worker.connection for worker in workers])
            for place, worker in enumerate(workers):
                if worker.connection not in talking:
                    continue
                try:
                    kind, content = worker.connection.recv()
                except (EOFError, OSError, pickle.UnpicklingError):
                    _stop(worker)
                    watch.images(-worker.images)
                    unready = 0 if worker.ready else unready + 1
                    lost = worker.shard
                    if lost is not None:
                        queue.appendleft(lost)
                        deaths[lost.number] = deaths.get(lost.number, 0) + 1
                    watch.died(_obituary(worker))
                    if unready >= _STARTS or (
                        lost is not None and deaths[lost.number] > REQUEUES + 1 + len(lost.images)
                    ):
                        raise ChildProcessError(f"--workers: {_obituary(worker)}") from None
                    workers[place] = _started(job, worker.device)
                    continue
                if kind == "error":
                    raise content
                if kind == "image":
                    worker.images += content
                    watch.images(content)
                    continue
                if kind == "ready":
                    worker.ready, unready = True, 0
                    if not told:
                        watch.ready(content)
                        told = True
                if kind == "done":
                    worker.shard, worker.images = None, 0
                    left -= 1
                    watch.done(content)
            for worker in workers:
                if queue and worker.ready and worker.shard is None:
                    _hand(worker, queue.popleft())
        for worker in workers:
            _hand(worker, None)
        for worker in workers:
            worker.process.join(_GRACE)
    finally:
        for worker in workers:
            _stop(worker)


def _started(job: Job, device: str) -> _Worker:
    # Not fork of this process: neither CUDA nor OpenMP's threads survive it. A server with torch
    # loaded and neither begun forks a worker in no time, where a new process loads for 3 to 6 s.
    if "forkserver" in multiprocessing.get_all_start_methods():
        context: Any = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["fastfss.cli.predict"])
    else:  # Windows
        context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(job, device, there), daemon=True)
    process.start()
    # The worker's end is then open in the worker alone, and closes when it dies.
    there.close()
    return _Worker(process, here, device)


def _hand(worker: _Worker, shard: Shard | None) -> None:
    worker.shard, worker.images = shard, 0
    with suppress(OSError):  # dead: the next message is the end of its connection
        worker.connection.send(shard)


def _stop(worker: _Worker) -> None:
    if worker.process.is_alive():
        worker.process.kill()
    worker.process.join()
    worker.connection.close()


def _obituary(worker: _Worker) -> str:
    code = worker.process.exitcode
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    over = "before it was ready" if not worker.ready else "while idle"
    if worker.shard is not None:
        over = f"over shard {worker.shard.name}"
    return f"a worker died {over} ({how})"


def _work(job: Job, device: str, connection: Connection) -> None:
    """The process: ready, then shard by shard until there is none."""
    # Ctrl-C reaches all processes of a terminal; the first one ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with warnings.catch_warnings(record=True) as caught:
            label = job.start(device)
        connection.send(("ready", [str(warning.message) for warning in caught]))
        while (shard := connection.recv()) is not None:
            outcome = label(shard, lambda: connection.send(("image", 1)))
            connection.send(("done", outcome))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the first process is gone
    except BaseException as error:
        connection.send(("error", _sendable(error)))


def _sendable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return ValueError(f"{type(error).__name__}: {error}")
    return error
