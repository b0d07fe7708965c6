"""Triton kernels for CUDA devices: the statistics of attention calls, hidden states and role vectors.

The modules that the host runs (``plan``, ``inputs``, ``constants``, ``launch``, ``masks``, ``tiles``,
``vectors``, ``partial_moments``, ``sketch_launch``) load without Triton, so that they can give a reason when
they cannot take a call. The kernels are in ``rows`` (with ``spans``, ``singles`` and ``output``), ``columns``
and ``visibility``, which share ``scores``, and in ``moments``, ``gram``, ``merging`` and ``sketch``.
"""

from lightning_geo.kernels.triton.launch import Launch, missing
from lightning_geo.kernels.triton.plan import attention, launches, unsupported

__all__ = ["Launch", "attention", "launches", "missing", "unsupported"]
