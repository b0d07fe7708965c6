"""Converts histories to xarray and pandas, for notebooks. Needs the extra ``analysis``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lightning_geo.metrics.selection import spec_of
from lightning_geo.metrics.spec import MetricSpec
from lightning_geo.utils.errors import ArgumentError

if TYPE_CHECKING:
    import pandas as pd
    import xarray


__all__ = ["to_pandas", "to_xarray"]


class _Samples(Protocol):
    """The part of :class:`~lightning_geo.GeometryHistory` that is converted."""

    steps: NDArray[np.int64]
    stacks: dict[str, dict[str, NDArray[Any]]]
    metadata: dict[str, NDArray[Any]]
    model: dict[str, Any]
    specs: dict[str, MetricSpec]
    path: str


_AXES = ("step", "layer", "head")


def to_xarray(history: _Samples, stack: str | None = None) -> xarray.Dataset:
    """See :meth:`lightning_geo.GeometryHistory.to_xarray`."""
    import xarray

    if stack is None and len(history.stacks) == 1:
        [stack] = history.stacks
    if stack is None or stack not in history.stacks:
        raise ArgumentError(f"Expected `stack` to be one of {list(history.stacks)} but got {stack!r}.")
    arrays = {
        name: xarray.DataArray(values, dims=_AXES[: values.ndim], attrs=_about(name, history.specs))
        for name, values in history.stacks[stack].items()
    }
    sizes = {dim: size for array in arrays.values() for dim, size in array.sizes.items()}
    numbers = {dim: np.arange(size) for dim, size in sizes.items() if dim != "step"}
    metadata = {name: ("step", values) for name, values in history.metadata.items()}
    about = {"model": str(history.model.get("class", "")), "stack": stack, "path": history.path}
    return xarray.Dataset(arrays, {"step": history.steps, **numbers, **metadata}, about)


def to_pandas(history: _Samples) -> pd.DataFrame:
    """See :meth:`lightning_geo.GeometryHistory.to_pandas`."""
    import pandas as pd

    frames = []
    for stack, arrays in history.stacks.items():
        for name, values in arrays.items():
            cells = np.nonzero(np.isfinite(values))
            columns: dict[str, Any] = {
                "step": history.steps[cells[0]],
                "stack": stack,
                "metric": name,
                "layer": cells[1],
                "head": pd.array(cells[2] if len(cells) > 2 else [None] * len(cells[0]), dtype="Int64"),
                "value": values[cells],
                "unit": _about(name, history.specs).get("units", ""),
            }
            frames.append(pd.DataFrame(columns))
    table = pd.concat(frames, ignore_index=True)
    return table.astype(dict.fromkeys(("stack", "metric", "unit"), "category"))


def _about(name: str, specs: Mapping[str, MetricSpec]) -> dict[str, str]:
    """Unit, formula and meaning of a metric, under the names that xarray's plots use."""
    try:
        spec = spec_of(name, specs)
    except KeyError:  # a metric of a newer version, or one whose spec is damaged
        return {}
    return {"units": spec.unit, "long_name": name, "formula": spec.formula, "meaning": spec.meaning}
