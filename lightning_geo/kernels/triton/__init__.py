"""Triton kernels for CUDA devices: the statistics of attention calls, hidden states and role vectors.

The modules that the host runs (``plan``, ``launch``, ``masks``, ``tiles``, ``vectors``) load without Triton,
so that they can say why a call cannot be taken. The kernels are in ``rows`` with ``shares``, ``columns`` and
``visibility``, which have ``scores`` in common, and in ``moments``.
"""

from lightning_geo.kernels.triton.launch import Launch, missing
from lightning_geo.kernels.triton.plan import attention, launches, unsupported

__all__ = ["Launch", "attention", "launches", "missing", "unsupported"]
