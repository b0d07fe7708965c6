"""A plugin of axolotl, which trains with ``transformers.Trainer``. In its YAML::

plugins:
  - lightning_geo.monitor.axolotl_plugin.GeometryPlugin
lightning_geo:
  every_n_steps: 50
"""

from __future__ import annotations

from typing import Any

from axolotl.integrations.base import BasePlugin
from pydantic import BaseModel

from lightning_geo.monitor.transformers_trainer import GeometryCallback

__all__ = ["GeometryArgs", "GeometryPlugin"]


class GeometryArgs(BaseModel):
    """The field that the plugin adds to axolotl's configuration.

    Args:
        lightning_geo: Arguments of :class:`~lightning_geo.GeometryCallback`; ``None`` for its defaults.
    """

    lightning_geo: dict[str, Any] | None = None


class GeometryPlugin(BasePlugin):  # type: ignore[misc]
    """Adds a :class:`~lightning_geo.GeometryCallback` to the Trainer that axolotl makes."""

    def get_input_args(self) -> str:
        """Return the path of the model of the plugin's configuration."""
        return f"{__name__}.{GeometryArgs.__name__}"

    def add_callbacks_pre_trainer(self, cfg: Any, model: Any) -> list[Any]:
        """Return the callback.

        Args:
            cfg: axolotl's configuration.
            model: The model that will be trained.
        """
        return [GeometryCallback(**(cfg.lightning_geo or {}))]
