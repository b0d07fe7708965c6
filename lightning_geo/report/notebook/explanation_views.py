"""How an explanation shows itself."""

from __future__ import annotations

from lightning_geo.interventions.attribution import Explanation
from lightning_geo.report.explanation_page import shown_explanation
from lightning_geo.report.notebook.fragments import fragment
from lightning_geo.utils.views import views_of

__all__ = ["register"]


def register() -> None:
    """Register the views of this module."""
    views_of(Explanation, html=_html)


def _html(explanation: Explanation) -> str:
    return fragment("explanation_view.html.jinja", content=shown_explanation(explanation))
