"""Read damaged files: `python -m tests.robustness.fuzz --seconds 600 --seed 1 [--only task]`.

A reader may give something whole, or raise one of `CONTRACT`; anything else is a finding: another
exception, a reader that does not end, a process that dies (its file stays in the folder that the
first line names).
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.robustness.targets import CONTRACT, TARGETS

# No damaged file of these sizes takes a second on one core.
LONGEST_SECONDS = 20


class HangError(BaseException):
    """A reader that does not end; no Exception, so that nobody takes it for a damaged file."""


@dataclass(frozen=True)
class Finding:
    """What should not have happened.

    Attributes:
        target, seed: by which it comes back: `case(folder, target, seed)`.
        what: the exception's last lines.
    """

    target: str
    seed: int
    what: str


@contextmanager
def deadline(seconds: float = LONGEST_SECONDS) -> Iterator[None]:
    """Interrupt Python code that does not end."""

    def ring(*_: Any) -> None:
        raise HangError(f"still reading after {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


class Whole:
    """A target's whole files, copied for each case."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name, self.target = name, TARGETS[name]
        self.whole, self.work = folder / "whole", folder / "case"
        self.whole.mkdir(parents=True)
        self.file = self.target.make(self.whole).relative_to(self.whole)
        self.data = (self.whole / self.file).read_bytes()
        self._fresh()
        self.target.read(self.work / self.file)

    def case(self, seed: int) -> tuple[str, Finding | None]:
        """Damage the file by a seed and read it: how it ended, and what is wrong with that."""
        rng = random.Random(f"{self.name} {seed}")
        self._fresh()
        path = self.work / self.file
        path.write_bytes(rng.choice(self.target.mutations)(self.data, rng))
        try:
            with deadline(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.target.read(path)
        except CONTRACT as error:
            message = str(error)
            named = path.name in message or str(path.parent) in message
            unclear = not message.strip() or isinstance(error, UnicodeDecodeError)
            if unclear or (self.target.named and not named):
                shown = f"{type(error).__name__} that does not name the file: {message!r}"
                return "unclear", Finding(self.name, seed, shown + _where(error))
            return type(error).__name__, None
        except (Exception, HangError) as error:
            shown = f"{type(error).__name__}: {str(error)[:200]}"
            return "finding", Finding(self.name, seed, shown + _where(error))
        return "whole", None

    def _fresh(self) -> None:
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.whole, self.work)


def _where(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "fastfss" in f.filename]
    return "".join(f"\n    {Path(f.filename).name}:{f.lineno} {f.line}" for f in frames[-3:])


def run(name: str, seeds: range, folder: Path) -> tuple[Counter[str], list[Finding]]:
    """Read as many damaged files of a target as there are seeds."""
    whole, ends, findings = Whole(folder / name, name), Counter[str](), []
    for seed in seeds:
        end, finding = whole.case(seed)
        ends[end] += 1
        findings += [finding] if finding else []
    return ends, findings


def main() -> int:
    """The longer run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=sorted(TARGETS), action="append")
    chosen = parser.parse_args()
    names = chosen.only or list(TARGETS)
    with tempfile.TemporaryDirectory() as folder:
        print(f"files in {folder}")
        total = 0
        ends: dict[str, Counter[str]] = {name: Counter() for name in names}
        findings: dict[tuple[str, str], Finding] = {}
        wholes = [Whole(Path(folder) / name, name) for name in names]
        until, seed = time.monotonic() + chosen.seconds, chosen.seed * 10**9
        while time.monotonic() < until:
            for whole in wholes:
                end, finding = whole.case(seed)
                ends[whole.name][end] += 1
                total += 1
                if finding:
                    findings.setdefault((whole.name, finding.what.partition("\n")[2]), finding)
            seed += 1
    for name, counted in ends.items():
        print(f"{name:15} {', '.join(f'{end} {n}' for end, n in sorted(counted.items()))}")
    for finding in findings.values():
        print(f"FOUND {finding.target} seed {finding.seed}: {finding.what}")
    print(f"{total} damaged files, {len(findings)} findings")
    return bool(findings)


if __name__ == "__main__":
    raise SystemExit(main())
