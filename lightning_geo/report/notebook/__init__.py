"""Views of runs, comparisons, plans and explanations in a notebook, for :mod:`lightning_geo.utils.views`."""

from __future__ import annotations

from lightning_geo.report.notebook import comparison_views, explanation_views, run_views

__all__: list[str] = []

for _views in (comparison_views, explanation_views, run_views):
    _views.register()
