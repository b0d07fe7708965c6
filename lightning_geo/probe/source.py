"""The source of a monitor's probe: the run's first calls, the user's ``probe=``, or a checkpoint."""

from __future__ import annotations

import pickle
from typing import Any

import torch

from lightning_geo.observe.module_selection import ITSELF
from lightning_geo.probe.call import ProbeCall
from lightning_geo.probe.candidates import Candidates
from lightning_geo.probe.probe import Probe, Share
from lightning_geo.probe.recorder import CallRecorder
from lightning_geo.probe.user_probe import given_probe
from lightning_geo.utils.ranks import Replicas, everyones, failure_of_any_rank, world_size
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["ProbeSource"]


class ProbeSource:
    """Obtains the probe once.

    Args:
        given: A batch or dataloader; None records the run's first calls.
        size: Number of sequences over all ranks.
        tokens: Number of tokens over all ranks; None for no limit.
        warn_once: Takes warnings about failures.
    """

    def __init__(self, given: Any, size: int, tokens: int | None, warn_once: WarnOnce) -> None:
        self._given = given
        self._size = size
        self._tokens = tokens
        self._warn_once = warn_once
        self._recorder: CallRecorder | None = None
        self._candidates: Candidates | None = None
        self._share: Share | None = None
        #: method of the LightningModule in which calls were recorded
        self._recorded_in = ""
        self._known: str | None = None
        #: observed models without a recorded call -> why
        self.unrecorded: dict[str, str] = {}
        self.probe: Probe | None = None
        #: which rank has which share
        self.replicas = Replicas.of_ranks()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out recording: a copy or a pickle records nothing."""
        return {**vars(self), "_recorder": None, "_candidates": None}

    @property
    def fingerprint(self) -> str:
        """The probe's fingerprint; empty without a probe."""
        return "" if self.probe is None else self.probe.fingerprint

    @property
    def described(self) -> str:
        """The inputs of samples, in words."""
        if self.probe is None:
            return "the training batches"
        sequences = sum(sum(call.sequences.counts) for call in self.probe.calls)
        tokens = sum(sum(call.sequences.tokens) for call in self.probe.calls)
        size = f"{sequences} sequence{'s' * (sequences != 1)}"
        size += f" with {tokens:,} tokens" if tokens else ""
        if self._given is not None:
            return f"{size}, those given as `probe`"
        origin = {"validation_step": "the first of the validation batches", "training_step": "the first of "
                  "the training batches"}.get(self._recorded_in, "those of the checkpoint")  # fmt: skip
        return f"{size}, {origin}"

    def share(self, device: torch.device) -> Share:
        """Return this rank's share of the probe."""
        assert self.probe is not None
        if self._share is None:
            self._share = self.probe.share(self.replicas.index, len(self.replicas.leaders)).to(device)
        return self._share

    def keep(self, models: list[str]) -> None:
        """Forget the calls of other models."""
        if self.probe is not None:
            self.probe = self.probe.only(models)

    def take_given(self, candidates: Candidates) -> bool:
        """Use the user's ``probe=``, if any; returns whether it differs from the checkpoint's.

        Raises:
            ValueError: If the model does not accept it.
        """
        if self._given is None or self.probe is not None:
            return False
        return self._adopt(given_probe(self._given, self._size, self._tokens, candidates))

    def start(self, candidates: Candidates) -> None:
        """Record the trainer's steps from now on, unless there is a probe."""
        if self.probe is None and self._given is None and self._recorder is None:
            share = len(range(self.replicas.index, self._size, len(self.replicas.leaders)))
            # Set before anything that may fail on one rank: `finish`, in which ranks meet, asks for it.
            self._candidates = candidates
            self._recorder = CallRecorder(
                candidates.models, share, self._tokens, candidates.root, candidates.dependence
            )

    @property
    def records(self) -> bool:
        """Whether the trainer's steps are recorded."""
        return self._recorder is not None

    @property
    def lacks_calls(self) -> bool:
        """Whether steps are recorded, and no call of a model was seen yet."""
        return self._recorder is not None and self._recorder.empty

    def step_begins(self, method: str, batch: Any, batch_idx: int) -> None:
        """Record a step of the LightningModule that is about to begin; see :class:`CallRecorder`."""
        if self._recorder is not None:
            self._recorded_in = method
            self._recorder.step_begins(method, batch, batch_idx)

    def step_ends(self) -> None:
        """Stop watching the models until the next step, so that no copy of them has a hook."""
        if self._recorder is not None:
            self._recorder.stop()

    def finish(self) -> bool:
        """Use the recorded calls, if any; returns whether they differ from the checkpoint's."""
        recorder, candidates, other = self._recorder, self._candidates, False
        if candidates is None:
            return False
        calls: list[ProbeCall] = []
        unsent, unjoined, probe = None, None, None
        try:
            if recorder is not None:
                calls = recorder.settled(candidates.divides)
            if world_size() > 1:
                pickle.dumps(calls)  # calls that cannot be sent must fail before the ranks meet
        except Exception as error:
            calls, unsent = [], error
        received = everyones(calls)  # ranks meet here: one that failed sends an empty list
        everyone = [received[leader] for leader in self.replicas.leaders]
        try:
            probe = Probe.joined(everyone, self._size, self._tokens)
        except Exception as error:
            unjoined = error
        # All ranks have a probe or none has: ranks with a probe take samples together.
        whole = all(everyones(unjoined is None))
        failure = unsent if whole else failure_of_any_rank(unsent or unjoined)
        other = self._adopt(probe if whole else None)
        if failure is not None:
            self._warn_once.report("the probe could not be recorded", failure)
        if recorder is None:
            return other
        kept = [] if self.probe is None else self.probe.models
        self.unrecorded = {n: why for n, why in recorder.passed_over.items() if n not in kept}
        if recorder.passed_over_outside:
            self.unrecorded.setdefault(ITSELF, recorder.passed_over_outside)
        if self.probe is not None:
            self.stop()
        return other

    def stop(self) -> None:
        """Stop recording; a second call does nothing."""
        if self._recorder is not None:
            self._recorder.stop()
            self._recorder = self._candidates = None

    def _adopt(self, probe: Probe | None) -> bool:
        self.probe, self._share = probe, None
        if probe is None or self._known in (None, probe.fingerprint):
            return False
        self._warn_once.warn("the checkpoint's probe differs from this run's, so that drift starts anew")
        return True

    def missing(self, candidates: Candidates) -> LookupError:
        """Return an error with the reason why there is no probe, and a remedy."""
        if self.unrecorded:
            return LookupError(f"no call could be recorded. {candidates.because(self.unrecorded)}")
        return LookupError(
            "the trainer has not called any module that can be observed. If training calls a method other "
            "than the module itself, set `probe=` or `module=`"
        )

    def state_dict(self, *, inputs: bool) -> dict[str, Any]:
        """Return the probe's inputs, if they may be stored, and its fingerprint."""
        probe = self.probe
        return {
            "probe": probe.state_dict() if probe is not None and inputs else None,
            "fingerprint": None if probe is None else probe.fingerprint,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the inputs, or only the fingerprint, which a new probe is compared with."""
        self._known = state["fingerprint"]
        if state["probe"] is not None:
            self.probe = Probe.from_state_dict(state["probe"])
