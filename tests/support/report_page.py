"""A report as its reader gets it: elements and text."""

from __future__ import annotations

from html.parser import HTMLParser


class Page(HTMLParser):
    """Elements, their attributes and the text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_loads_nothing(page: Page) -> None:
    """It asks the browser for no file and no script, and forbids both."""
    for tag, attributes in page.elements:
        assert tag not in ("script", "link", "iframe", "object", "embed", "base", "form", "img"), tag
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href", "action", "data"):
            target = attributes.get(name) or "data:"
            # a link within the page asks for nothing
            assert target.startswith(("#", "data:") if tag == "a" and name == "href" else "data:")
    [policy] = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None
    assert policy.startswith("default-src 'none'")
