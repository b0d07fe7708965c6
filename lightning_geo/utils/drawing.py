"""Objects that a notebook shows by themselves: drawings and pages."""

from __future__ import annotations

import html
import os
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Drawing", "Page"]


@dataclass(frozen=True, repr=False)
class Drawing:
    """A picture that a notebook shows, and that can be kept as a file.

    Args:
        title: Its subject.
        markup: As HTML for a notebook: SVG and its style.
        svg: As a file of its own.
    """

    title: str
    markup: str
    svg: str

    def __repr__(self) -> str:
        return f"Drawing({self.title!r})"

    def _repr_html_(self) -> str:
        return self.markup

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the picture as an SVG file.

        Args:
            path: The file, ``entropy.svg``.
        """
        Path(path).write_text(self.svg, encoding="utf-8")


@dataclass(frozen=True, repr=False)
class Page:
    """An HTML page that a notebook shows in a frame, and that can be kept as a file.

    Args:
        title: Its subject.
        content: The whole page.
    """

    title: str
    content: str

    def __repr__(self) -> str:
        return f"Page({self.title!r}, {len(self.content.encode(errors='replace')) / 1e3:.0f} kB)"

    def _repr_html_(self) -> str:
        # a frame of its own: neither the page's style nor the notebook's reaches the other
        frame = 'width="100%" height="700" style="border:0" sandbox'
        # links within the page would lead to the notebook, whose address a frame inherits
        content = self.content.replace("<head>", '<head>\n<base href="about:srcdoc">', 1)
        title, content = html.escape(self.title), html.escape(content)
        return f'<iframe title="{title}" {frame} srcdoc="{content}"></iframe>'

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page as an HTML file.

        Args:
            path: The file, ``report.html``.
        """
        Path(path).write_text(self.content, encoding="utf-8", errors="replace")
