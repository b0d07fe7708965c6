"""Recognises masks that are a row of keys and a band: what transformers writes out as [B, 1, Nq, Nk].

Kernels read such a mask at a fraction of a dense one's cost. Every mask is compared with the structure that
stands for it: a mask that differs costs its call, which then has no value.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lightning_geo.kernels import HIDDEN_BELOW
from lightning_geo.observe.call import AttentionCall
from lightning_geo.observe.evidence.axes import config_of
from lightning_geo.utils._torch import identity_of
from lightning_geo.utils.device_copy import ToHost

__all__ = ["Band", "MaskStructures", "departs"]

#: Query rows compared in one step, so that a long mask needs no copy of its own size.
_ROWS = 1024

#: Sets of masks whose verdicts are kept, with the masks: layers alternate between two at most.
_KEPT = 2


class Band(NamedTuple):
    """The number of keys before and after its own position that a row sees; None for all."""

    left: int | None = None
    right: int | None = None


def departs(
    masks: tuple[Tensor, ...], key_mask: Tensor, query_mask: Tensor | None, offset: int, band: Band
) -> Tensor:
    """Whether masks differ from a band: they do not leave to every real row exactly the real keys in it.

    Args:
        masks: [B or 1, H or 1, Nq or 1, Nk or 1] each, bool or additive with -inf where it hides.
        key_mask: [B, Nk] bool, True for real keys.
        query_mask: [B, Nq] bool, True for real rows; None if all are. Masks of padding are of no interest.
        offset: Key position of row 0.
        band: Which keys causality and a window leave.

    Returns:
        bool, on the device of the masks.

    Example:
        >>> real = torch.tensor([[True, True, False]])
        >>> causal = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
        >>> departs((causal & real,), real, real, 0, Band(right=0)).item()
        False
        >>> departs((causal & real,), real, real, 0, Band()).item()
        True
    """
    departs: Tensor | None = None
    queries = max(mask.shape[2] for mask in masks)
    for start in range(0, queries, _ROWS):
        stop = min(start + _ROWS, queries)
        expected = key_mask[:, None, None, :]
        if band != Band():
            expected = expected.expand(-1, 1, stop - start, -1)
        if band.right is not None:
            expected = expected.tril(offset + start + band.right)
        if band.left is not None:
            expected = expected.triu(offset + start - band.left)
        visible, added = _read([m[:, :, start:stop] if m.shape[2] > 1 else m for m in masks])
        wrong = visible != expected
        if added is not None:
            wrong = wrong | added
        if query_mask is not None:
            wrong = wrong & query_mask[:, None, start:stop, None]
        part = wrong.any()
        departs = part if departs is None else departs | part
    assert departs is not None
    return departs


def _read(masks: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Find where all masks let a row see a key, and where any adds to its score (NaN does)."""
    visible: Tensor | None = None
    added: Tensor | None = None
    for mask in masks:
        seen = mask
        if mask.dtype != torch.bool:
            seen = ~(mask <= HIDDEN_BELOW)
            adds = seen & (mask != 0)
            added = adds if added is None else added | adds
        visible = seen if visible is None else visible & seen
    assert visible is not None
    return visible, added


class _Verdicts:
    """The bands that a set of masks follows.

    Args:
        masks: The masks, held so that no other tensor takes their place in memory, as the others.
        key_mask: Real keys.
        query_mask: Real rows.
        offset: Key position of row 0.
    """

    def __init__(
        self, masks: tuple[Tensor, ...], key_mask: Tensor, query_mask: Tensor | None, offset: int
    ) -> None:
        self._arguments = masks, key_mask, query_mask, offset
        self._departs: dict[Band, Tensor] = {}
        self._keys: dict[Band, Tensor] = {}
        self._copies: dict[tuple[Band, ...], ToHost] = {}
        self._first: dict[tuple[Band, ...], Band | None] = {}

    def _departs_from(self, band: Band) -> Tensor:
        if band not in self._departs:
            self._departs[band] = departs(*self._arguments, band)
        return self._departs[band]

    def keys(self, band: Band) -> Tensor:
        """The real keys; none where the masks do not follow the band, so that no row then has a value."""
        if band not in self._keys:
            self._keys[band] = self._arguments[1] & ~self._departs_from(band)
        return self._keys[band]

    def first(self, bands: tuple[Band, ...]) -> Band | None:
        """The first of some bands that they follow; the host waits for it."""
        if bands not in self._first:
            self._first[bands] = next((b for b in bands if not self._departs_from(b).item()), None)
        return self._first[bands]

    def copy(self, bands: tuple[Band, ...]) -> ToHost:
        """Whether they depart from some bands, on its way to the host."""
        if bands not in self._copies:
            self._copies[bands] = ToHost(torch.stack([self._departs_from(band) for band in bands]))
        return self._copies[bands]


class _Use(NamedTuple):
    """A call whose verdicts are on their way, and the band that it was measured with."""

    place: tuple[str, bool]
    assumed: Band | None
    bands: tuple[Band, ...]
    copy: ToHost


class MaskStructures:
    """Replaces the masks of calls by a row of keys and a band, where they are equal to that.

    On a CPU the comparison decides at once. A CUDA device is not waited for: in the first sample its calls
    keep their masks, and each module's band is read when the sample has ended. Later samples assume this
    band, and compare again. Where the comparison then fails, no key is visible, so that the call has no
    values; :meth:`settle` names its module, whose masks are read as they are from then on.
    """

    def __init__(self) -> None:
        self._verdicts: OrderedDict[tuple[object, ...], _Verdicts] = OrderedDict()
        #: band by module, and whether it is cross-attention; None where there is none to rely on
        self._bands: dict[tuple[str, bool], Band | None] = {}
        self._uses: list[_Use] = []

    def clear(self) -> None:
        """Forget the masks of the forward pass that ended."""
        self._verdicts.clear()

    @staticmethod
    def knows_at_once(call: AttentionCall) -> bool:
        """Whether the host learns what a call's device computed without waiting for it."""
        return call.device.type != "cuda"

    def proves(self, call: AttentionCall, module: nn.Module, tokens: Tensor) -> bool:
        """Whether the host knows at once that a self-attention's masks show its real rows just these keys."""
        masks = _dense(call)
        if masks is None or not self.knows_at_once(call):
            return False
        return self._of(call, masks, tokens, tokens).first(_bands(call, module)) is not None

    def assumes(self, call: AttentionCall, name: str, module: nn.Module) -> bool:
        """Whether :meth:`simplify` assumes that a call's masks are those of an earlier sample."""
        band = self._bands.get((name, call.cross))
        known = band is not None and call.key_mask is not None and not self.knows_at_once(call)
        return known and _dense(call) is not None and band in _bands(call, module)

    def simplify(self, call: AttentionCall, name: str, module: nn.Module) -> None:
        """Replace masks of a call whose tokens are known by a row of keys and a band.

        Args:
            call: The call.
            name: Path of its module.
            module: Its module, which may declare causality and a window.
        """
        masks = _dense(call)
        if masks is None or call.key_mask is None:
            return
        verdicts, bands = self._of(call, masks, call.key_mask, call.query_mask), _bands(call, module)
        if self.knows_at_once(call):
            band = verdicts.first(bands)
            if band is not None:
                _replace(call, call.key_mask, band)
            return
        place = name, call.cross
        assumed = self._bands.get(place)
        if place not in self._bands:
            self._uses.append(_Use(place, None, bands, verdicts.copy(bands)))
        elif assumed in bands:
            self._uses.append(_Use(place, assumed, (assumed,), verdicts.copy((assumed,))))
            _replace(call, verdicts.keys(assumed), assumed)

    def settle(self) -> list[str]:
        """Read the verdicts that have arrived; return the modules that were measured with a wrong band."""
        arrived = [use for use in self._uses if use.copy.arrived]
        self._uses = [use for use in self._uses if not use.copy.arrived]
        wrong: list[str] = []
        followed: dict[tuple[str, bool], tuple[Band, ...]] = {}
        for use in arrived:
            flags = zip(use.bands, use.copy.value.tolist(), strict=True)
            holds = tuple(band for band, departs_from in flags if not departs_from)
            if use.assumed is None:  # all calls of a sample must agree
                known = followed.get(use.place, holds)
                followed[use.place] = tuple(band for band in known if band in holds)
            elif not holds:
                wrong.append(use.place[0])
                self._bands[use.place] = None
        for place, bands in followed.items():
            self._bands[place] = bands[0] if bands else None
        return wrong

    def _of(
        self, call: AttentionCall, masks: tuple[Tensor, ...], key_mask: Tensor, query_mask: Tensor | None
    ) -> _Verdicts:
        offset = call.offset or 0
        tensors = [*masks, key_mask] if query_mask is None else [*masks, key_mask, query_mask]
        if any(x.is_inference() for x in tensors):  # writes to them do not raise torch's version counter
            return _Verdicts(masks, key_mask, query_mask, offset)
        key = offset, *map(identity_of, tensors)
        verdicts = self._verdicts.pop(key, None) or _Verdicts(masks, key_mask, query_mask, offset)
        self._verdicts[key] = verdicts
        if len(self._verdicts) > _KEPT:
            self._verdicts.popitem(last=False)
        return verdicts


def _dense(call: AttentionCall) -> tuple[Tensor, ...] | None:
    """The masks of a call if one differs between rows and all may be a row of keys and a band."""
    if call.scores is not None or call.window is not None:
        return None
    masks = []
    for mask in call.masks:
        if not isinstance(mask, Tensor) or mask.dim() != 4:
            return None
        for axis, (size, stride) in enumerate(zip(mask.shape, mask.stride(), strict=True)):
            if stride == 0 and size > 1:
                mask = mask.narrow(axis, 0, 1)
        masks.append(mask)
    return tuple(masks) if any(mask.shape[2] > 1 for mask in masks) else None


def _bands(call: AttentionCall, module: nn.Module) -> tuple[Band, ...]:
    """The bands that a call may have, the likeliest first."""
    if call.cross or call.offset is None:
        return (Band(),)
    plain, causal = Band(), Band(right=0)
    bands: tuple[Band, ...] = (plain, causal)
    if getattr(module, "is_causal", None) is True:
        bands = causal, plain
    window = getattr(module, "sliding_window", getattr(config_of(module), "sliding_window", None))
    if isinstance(window, int) and not isinstance(window, bool) and window > 0:
        bands = Band(window - 1, 0), *bands
    return bands


def _replace(call: AttentionCall, keys: Tensor, band: Band) -> None:
    call.masks = (keys[:, None, None, :],)
    if band.right is not None:
        call.is_causal = True
    if band.left is not None:
        call.window = band.left, -1
