"""mkdocs.yml names what there is; .ci/run builds it with `mkdocs build --strict`."""

from __future__ import annotations

import re
import runpy
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.docs.pages import DOCS, ROOT
from tests.test_api_surface import PUBLIC

MOST_PICTURES = 400 << 10


def settings() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed; timm and MkDocs bring it")
    found: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    return found


def pages_in(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for one in nav if isinstance(nav, list) else nav.values():
            yield from pages_in(one)


def rewritten(markdown: str, *, page: str, repo_url: str | None) -> str:
    """By the hook, which MkDocs loads from its file too."""
    hook = runpy.run_path(str(DOCS / "repository_links.py"))["on_page_markdown"]
    config = SimpleNamespace(repo_url=repo_url)
    shown: str = hook(
        markdown, page=SimpleNamespace(file=SimpleNamespace(src_uri=page)), config=config
    )
    return shown


def test_nav_names_every_page_once_and_nothing_else() -> None:
    named = sorted(pages_in(settings()["nav"]))
    assert named == sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))


def test_nothing_is_fetched_by_the_pages() -> None:
    found = settings()
    assert found["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & set(found)


def test_the_reference_has_every_public_name() -> None:
    """A module by its page's `::: module`, or each of its names where they are listed apart."""
    pages = sorted((DOCS / "api").glob("*.md"))
    documented = {
        name for path in pages for name in re.findall(r"^::: (\S+)$", path.read_text(), re.M)
    }
    for module, names in PUBLIC.items():
        if module.__name__ in documented:
            continue
        apart = {one.rpartition(".")[2] for one in documented if one.startswith(module.__name__)}
        assert apart >= set(names.split()), module.__name__


def test_a_function_named_as_its_module_is_listed_apart() -> None:
    """The parser of docstrings sees the module alone, and `::: parent` would leave it out."""
    text = "".join(path.read_text() for path in (DOCS / "api").glob("*.md"))
    for module in PUBLIC:
        if f"::: {module.__name__}\n" in text:
            folder = ROOT.joinpath(*module.__name__.split("."))
            assert not {path.stem for path in folder.glob("*.py")} & set(module.__all__)


def test_pictures_are_small_and_shown() -> None:
    pictures = sorted((DOCS / "pictures").iterdir())
    assert sum(path.stat().st_size for path in pictures) < MOST_PICTURES
    shown = "".join(path.read_text() for path in DOCS.glob("*.md"))
    assert all(f"(pictures/{path.name})" in shown for path in pictures)


@pytest.mark.parametrize(
    ("page", "link", "shown"),
    [
        ("a.md", "[rows](../bench/results)", "rows (`bench/results`)"),
        ("a.md", "[`bench/run.py`](../bench/run.py)", "`bench/run.py`"),
        ("a.md", "[methods](methods.md#ssp)", "[methods](methods.md#ssp)"),
        ("api/a.md", "[methods](../methods.md)", "[methods](../methods.md)"),
        ("api/a.md", "[rows](../../bench/results)", "rows (`bench/results`)"),
    ],
)
def test_links_out_of_docs_become_paths(page: str, link: str, shown: str) -> None:
    assert rewritten(link, page=page, repo_url=None) == shown


def test_links_out_of_docs_lead_to_the_repository_where_it_has_an_address() -> None:
    shown = rewritten("[rows](../bench)", page="a.md", repo_url="https://host/name/")
    assert shown == "[rows](https://host/name/blob/HEAD/bench)"
