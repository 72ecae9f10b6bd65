"""The pages of the documentation, and the Python in them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(
    path.relative_to(ROOT).as_posix() for path in [ROOT / "README.md", *DOCS.rglob("*.md")]
)

_BLOCK = re.compile(
    r"^(?:<!-- not run: (?P<reason>.+) -->\n)?```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A block of Python.

    Attributes:
        code: what is in it.
        line: that of the page where the code begins.
        reason: why it is not run: the comment `<!-- not run: ... -->` above it, or None.
    """

    code: str
    line: int
    reason: str | None


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text()
    return [
        Block(found["code"], text[: found.start("code")].count("\n") + 1, found["reason"])
        for found in _BLOCK.finditer(text)
    ]
