"""Plans on disk: whole or not there, built once, and found again by all that they depend on.

Beside each lie the kernels that a GPU compiled of it, where the library compiles when it runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from fastfss.atomic import atomic_path

FORMAT = "fastfss-plan-1"
_SHOWN = 16


class PlanStore:
    """A folder of plans.

    A file is a line of JSON (format, key, digest, what the plan was built of) and the plan. A
    folder that cannot be written is no error: nothing is kept then.

    Args:
        folder: need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, graph: str, key: Mapping[str, str]) -> Path:
        """The file of a graph's plan ("encode", "match") with everything that it depends on."""
        text = json.dumps(dict(key), sort_keys=True)
        return self.folder / f"{graph}-{hashlib.sha256(text.encode()).hexdigest()[:_SHOWN]}.plan"

    def read(self, path: Path) -> tuple[bytes, str] | None:
        """A plan and the digest of the graph that it was built of; None if there is none.

        A file that is truncated or of something else is removed.
        """
        try:
            content = path.read_bytes()
        except OSError:
            return None
        head, _, plan = content.partition(b"\n")
        with suppress(ValueError, KeyError, TypeError):
            about = json.loads(head)
            whole = hashlib.sha256(plan).hexdigest() == about["sha256"]
            if about["format"] == FORMAT and whole:
                return plan, str(about["graph"])
        self.remove(path)
        return None

    def write(self, path: Path, key: Mapping[str, str], graph: str, plan: bytes) -> bool:
        """Keep a plan; False where the folder cannot be written.

        Args:
            path: of `path`.
            key: what the file's name is made of, for people.
            graph: the digest of the ONNX file.
            plan: TensorRT's.
        """
        about = {"format": FORMAT, "sha256": hashlib.sha256(plan).hexdigest(), "graph": graph}
        head = json.dumps({**about, "key": dict(key)})
        return self._written(path, head.encode() + b"\n" + plan)

    def remove(self, path: Path) -> None:
        """Forget a plan."""
        with suppress(OSError):
            path.unlink()

    def compiled(self, plan: Path, about: Mapping[str, str]) -> Compiled:
        """The kernels that a GPU compiled of a plan.

        Args:
            plan: of `path`.
            about: the GPU and its driver.
        """
        return Compiled(self, self.path(plan.stem, about).with_suffix(".kernels"), dict(about))

    def read_timings(self, key: Mapping[str, str]) -> bytes:
        """The timing cache of a GPU and version; empty where there is none."""
        with suppress(OSError):
            return self._timings(key).read_bytes()
        return b""

    def write_timings(self, key: Mapping[str, str], timings: bytes) -> None:
        """Keep a timing cache."""
        self._written(self._timings(key), timings)

    @contextmanager
    def locked(self, path: Path) -> Iterator[None]:
        """While it is held, another process that wants the same plan waits.

        Where files cannot be locked two may build, and the last to write wins.
        """
        try:
            import fcntl

            self.folder.mkdir(parents=True, exist_ok=True)
            lock = path.with_suffix(".lock").open("w")
        except (ImportError, OSError):
            yield
            return
        with lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _timings(self, key: Mapping[str, str]) -> Path:
        return self.path("timings", key).with_suffix(".cache")

    def _written(self, path: Path, content: bytes) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_bytes(content)
        except OSError:
            return False
        return True


class Compiled:
    """Kernels that a GPU compiled of a plan, in a file.

    Args:
        store: where.
        path: the file; it need not be there.
        about: the GPU and its driver, for people.
    """

    def __init__(self, store: PlanStore, path: Path, about: Mapping[str, str]) -> None:
        self.path = path
        self._store, self._about = store, about
        self._kept = ""

    def read(self) -> bytes:
        """What was kept; nothing where there is none."""
        found = self._store.read(self.path)
        content = b"" if found is None else found[0]
        self._kept = hashlib.sha256(content).hexdigest()
        return content

    def write(self, content: bytes) -> None:
        """Keep them, unless none came since the last."""
        digest = hashlib.sha256(content).hexdigest()
        if digest != self._kept:
            self._store.write(self.path, self._about, "", content)
            self._kept = digest


def structure_digest(graph: Path) -> str:
    """A digest of an ONNX file without its weights: equal for exports that differ in them alone.

    Raises:
        MissingExtraError: onnx is not installed.
    """
    from fastfss.errors import import_extra

    onnx = import_extra("onnx", extra="onnx", purpose="plans that take other weights")
    model = onnx.load(str(graph))
    for one in model.graph.initializer:
        # Sizes, axes and the like are integers; they are part of the structure.
        if one.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16) and one.dims:
            one.ClearField("raw_data")
            one.ClearField("float_data")
    text: bytes = model.SerializeToString(deterministic=True)
    return hashlib.sha256(text).hexdigest()
