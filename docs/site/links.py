"""Prepares links for the site: a link to a file outside docs/ becomes plain text, since the site does not contain it.

A link to a file that does not exist stays a link, so that `mkdocs build --strict` reports it.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((\.\./[^)\s]+)\)")


def plain_links(markdown: str, folder: Path) -> str:
    """Returns the page with each link to an existing path outside docs/ replaced by its text. folder: of the page."""

    def replace(link: re.Match[str]) -> str:
        target = (folder / link[2].partition("#")[0]).resolve()
        outside = not target.is_relative_to(DOCS) and target.exists()
        return link[1] if outside else link[0]

    return LINK.sub(replace, markdown)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Is called by mkdocs for each page before it is rendered."""
    return plain_links(markdown, Path(page.file.abs_src_path).parent)
