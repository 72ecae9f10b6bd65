"""A hook of MkDocs: links that leave docs/ become the paths of the files in the repository.

On GitHub or in an editor `[the rows](../bench/results)` opens the folder; the site does not hold
it. There it reads "the rows (`bench/results`)", or links to the repository where mkdocs.yml has a
`repo_url`.
"""

from __future__ import annotations

import posixpath
import re
from typing import Any

LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<path>(?:\.\./)+[^)#\s]+)\)")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """The page's Markdown with its links to the repository rewritten."""
    folder = posixpath.dirname(page.file.src_uri)

    def rewritten(link: re.Match[str]) -> str:
        text, path = link["text"], posixpath.normpath(posixpath.join(folder, link["path"]))
        if not path.startswith("../"):
            return link[0]
        path = path.removeprefix("../")
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/HEAD/{path})"
        return f"`{path}`" if text.strip("`") == path else f"{text} (`{path}`)"

    return LINK.sub(rewritten, markdown)
