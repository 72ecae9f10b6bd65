"""``fastfss label --cluster``: the same job on a cluster, by Ray Data.

Ray Data runs actors that label one shard a call, and begins a shard anew elsewhere when its actor
or machine dies. What a shard is and how it is published does not change: the images and the output
folder must be on a file system that all machines share.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

from fastfss.cli.label_shard import Shard
from fastfss.cli.label_workers import Job, Watch
from fastfss.errors import import_extra


class Labeller:
    """An actor of Ray Data: loads the model once, then labels shard by shard.

    Args:
        job: as pickled bytes, so that Ray's own pickling does not decide what is sent.
        device: cpu or cuda; Ray shows each actor its own GPU.
    """

    def __init__(self, job: bytes, device: str) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._label = pickle.loads(job).start(device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Label one shard; the row that comes out holds its outcome."""
        outcome = self._label(pickle.loads(row["shard"]), lambda: None)
        return {"outcome": pickle.dumps(outcome)}


def run_on_cluster(
    address: str,
    job: Job,
    device: str,
    workers: int | None,
    threads: int,
    shards: Sequence[Shard],
    watch: Watch,
) -> None:
    """Label shards on a cluster; progress comes shard by shard.

    Args:
        address: of the cluster, as `ray.init` takes it; local starts one on this machine.
        job: what each actor runs.
        device: cpu, cuda for one GPU an actor, or auto: cuda where the cluster has GPUs.
        workers: how many actors; None for as many as the cluster has room for.
        threads: CPUs of each actor.
        shards: what is to be done.
        watch: who is told.

    Raises:
        MissingExtraError: Ray is not installed.
        ChildProcessError: the job failed on the cluster.
    """
    ray = import_extra("ray", extra="ray", purpose="--cluster")
    import_extra("ray.data", extra="ray", purpose="--cluster")
    started = not ray.is_initialized()
    if started:
        ray.init(
            address=address,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}},
            log_to_driver=False,
            logging_level="error",
        )
    try:
        room = ray.cluster_resources()
        if device == "auto":
            device = "cuda" if room.get("GPU") else "cpu"
        places = room.get("GPU", 0) if device == "cuda" else room.get("CPU", 0) / threads
        count = max(1, min(workers or int(places), len(shards)))
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        watch.ready([])
        rows = [{"shard": pickle.dumps(shard)} for shard in shards]
        # A block a shard: what Ray Data hands out, and does again when it is lost.
        done = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            Labeller,
            fn_constructor_args=(pickle.dumps(job), device),
            compute=ray.data.ActorPoolStrategy(size=count),
            num_cpus=threads,
            num_gpus=1 if device == "cuda" else 0,
        )
        for row in done.iter_rows():
            outcome = pickle.loads(row["outcome"])
            watch.images(outcome.labelled + outcome.failed)
            watch.done(outcome)
    except ray.exceptions.RayError as error:
        raise ChildProcessError(f"--cluster {address}: {_cause(error)}") from error
    finally:
        if started:
            ray.shutdown()


def _cause(error: BaseException) -> str:
    """The last line of what went wrong on the cluster; Ray sends a whole traceback as text."""
    cause = getattr(error, "cause", None) or error
    lines = [line for line in str(cause).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(cause).__name__
