"""Whether the running code is being captured into a CUDA graph."""

from __future__ import annotations

import torch

from lightning_geo.utils.errors import GeometryError

__all__ = ["CaptureError", "is_capturing"]


class CaptureError(GeometryError, RuntimeError):
    """A call cannot be measured, since it runs while a CUDA graph is captured."""

    def __init__(self) -> None:
        super().__init__(
            "it ran while a CUDA graph was captured, and observing would add kernels to that graph. "
            'Sample a step that runs eagerly, or use `source="probe"`'
        )


def is_capturing() -> bool:
    """Whether what runs on the current CUDA stream is captured into a graph instead of executed.

    While it is, no kernel may be compiled or waited for, and every operation is repeated in each replay of
    the graph.
    """
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()
