"""TensorBoard imports this module at every start, for every user: nothing in it is heavy or can fail."""

from __future__ import annotations

from typing import Any

from tensorboard.plugins.base_plugin import TBLoader
from tensorboard.util import tb_logging

from lightning_geo.dashboard.metadata import PLUGIN

__all__ = ["GeometryLoader"]


class GeometryLoader(TBLoader):  # type: ignore[misc]  # tensorboard ships no types
    """Makes the plugin. If that fails TensorBoard starts without the tab, and logs the reason."""

    def fix_flags(self, flags: Any) -> None:
        """Keep every sample unless ``--samples_per_plugin`` says otherwise.

        Left alone TensorBoard keeps a random 100 samples of each metric, or 10 without its fast data server.
        """
        limits = getattr(flags, "samples_per_plugin", None)
        if isinstance(limits, dict):
            limits.setdefault(PLUGIN, 0)

    def load(self, context: Any) -> Any:
        """Return the plugin, or None if it cannot be loaded."""
        try:
            from lightning_geo.dashboard.plugin import GeometryPlugin

            return GeometryPlugin(context)
        except Exception as error:
            # an exception here would keep TensorBoard from starting
            tb_logging.get_logger().warning("The Geometry tab is not available: %r", error)
            return None
