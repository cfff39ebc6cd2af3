"""A report as a reader sees it: its text by element, and what it refers to."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

VOID = {"meta", "link", "img", "br", "hr", "input", "path", "use", "rect"}


class Page(HTMLParser):
    """The parsed page: `tags` and their attributes, and the text inside any element of a class or id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self._open: list[tuple[str, set[str]]] = []
        self._texts: list[tuple[set[str], str]] = []
        self.feed(self.source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append((tag, {*attributes.get("class", "").split(), f"#{attributes.get('id', '')}", tag}))

    def handle_endtag(self, tag: str) -> None:
        while self._open:
            if self._open.pop()[0] == tag:
                return

    def handle_data(self, data: str) -> None:
        self._texts.append((set().union(*(names for _, names in self._open)), data))

    def text(self, inside: str = "body") -> str:
        """The text within elements of that tag, class or #id, spaces made one."""
        return re.sub(r"\s+", " ", " ".join(text for names, text in self._texts if inside in names)).strip()

    def having(self, name: str) -> list[dict[str, str]]:
        """The attributes of every element of that class."""
        return [attributes for _, attributes in self.tags if name in attributes.get("class", "").split()]
