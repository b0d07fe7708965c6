"""What masks let the training forward see, while samples are taken on a probe."""

from __future__ import annotations

import contextlib

from torch import Tensor

from lightning_geo.kernels.workspace import reuse_scratch
from lightning_geo.measurement.collectors.visibility import pairs_of
from lightning_geo.monitor.observed_models import ObservedModels
from lightning_geo.monitor.open_sample import OpenSample
from lightning_geo.observe import AttentionCall, BlockCall, CallKey, Tap
from lightning_geo.observe.packed.splitting import by_document
from lightning_geo.observe.replay.torch_compile import compiles_attention
from lightning_geo.observe.replay.undisturbed_run import has_fast_path
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["TrainingMasks"]

#: Samples from one look to the next.
_EVERY = 10


class TrainingMasks:
    """Counts the pairs that masks leave visible in a step's own forward pass, for the next record.

    A mask that is lost in training alone does not show on a replay in eval mode. Models that are compiled, or
    may take PyTorch's fused path, hide their attention: they are not looked at.

    Args:
        observed: The models.
        sample: Hands the pairs on to the next sample.
        warn_once: Where failures go.
    """

    def __init__(self, observed: ObservedModels, sample: OpenSample, warn_once: WarnOnce) -> None:
        self._observed = observed
        self._sample = sample
        self._warn_once = warn_once
        self._watching = contextlib.ExitStack()
        #: taps of its own: a device answers those of the sample, about its masks, while this one looks
        self._taps: dict[str, Tap] = {}
        self._seen: dict[str, tuple[Tap, _Pairs]] = {}
        self._looked = False

    def watch(self, samples: int) -> None:
        """Observe what the models compute from now on, at every tenth sample.

        Args:
            samples: How many samples the run has taken.
        """
        due = (samples - 1) % _EVERY == 0 or not self._looked
        models = self._observed.models
        if not due or not self._observed.settled:
            return
        self._looked = True
        with self._warn_once.about("masks of the training forward could not be observed"):
            if any(compiles_attention(model) or has_fast_path(model) for model in models.values()):
                return
            self._watching.enter_context(reuse_scratch())
            for name, model in models.items():
                if name not in self._taps:
                    self._taps[name] = Tap(model)
                tap = self._taps[name]
                tap.begin_sample()
                pairs = _Pairs()
                self._seen[name] = tap, pairs
                self._watching.enter_context(tap.open(pairs, training=True))

    def pause(self) -> float:
        """Stop observing, and hand on what was seen; returns how many seconds it took."""
        self._watching.close()
        seen, self._seen = self._seen, {}
        for name, (tap, pairs) in seen.items():
            with self._warn_once.about("masks of the training forward could not be observed"):
                if tap.failures:
                    raise tap.failures[0]
                self._sample.trained[name] = pairs.by_call
        return sum(tap.seconds for tap, _ in seen.values())


class _Pairs:
    """The observer of a tap: adds up the pairs of each attention call."""

    reads_padding = True

    def __init__(self) -> None:
        self.by_call: dict[CallKey, Tensor] = {}

    def attention(self, key: CallKey, call: AttentionCall) -> None:
        for part in () if key.cross else by_document(call):
            pairs = pairs_of(part)
            self.by_call[key] = pairs if key not in self.by_call else self.by_call[key] + pairs

    def attention_module(self, key: CallKey, output: Tensor, mask: Tensor | None) -> None:
        """Nothing."""

    def block(self, block: BlockCall) -> None:
        """Nothing."""
