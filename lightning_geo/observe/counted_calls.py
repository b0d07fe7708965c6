"""Calls of the observed model that an open tap shows: of its own depth of replays, and part of training."""

from __future__ import annotations

from torch import nn

from lightning_geo.observe.coverage import LeftOutError
from lightning_geo.observe.replay.undisturbed_run import replay_depth
from lightning_geo.observe.training_calls import begins_training
from lightning_geo.utils.cuda_graphs import CaptureError, is_capturing

__all__ = ["CountedCalls"]


class CountedCalls:
    """Decides which calls count, and skips everything inside a call that does not."""

    def __init__(self) -> None:
        #: calls in this sample that were skipped because they are not part of training
        self.passed_over = 0
        self._training = False
        #: the skipped module, once for each of its calls that are running
        self._skipped: list[nn.Module] = []
        #: the tap's own depth of replays: another monitor's replay in between is deeper, and is ignored
        self._depth = 0

    def open(self, *, training: bool, replays: bool) -> None:
        """Start to count.

        Args:
            training: Whether a call counts only if it is part of training.
            replays: Whether replays that begin from now on count, rather than what runs between them.
        """
        self._depth, self._training = replay_depth() + replays, training

    @property
    def at_own_depth(self) -> bool:
        """Whether the code that runs is at the tap's depth of replays."""
        return self._depth == replay_depth()

    @property
    def skipping(self) -> bool:
        """Whether a call that does not count is running."""
        return bool(self._skipped)

    def skip_from(self, modules: list[nn.Module]) -> None:
        """Skip everything until these modules end; with no module, skip nothing."""
        self._skipped = modules

    def begins_skipped(self, module: nn.Module, *, outermost: bool) -> bool:
        """Whether a module starts in a call that does not count; counts the call if it is the first to.

        Args:
            module: The module that starts.
            outermost: Whether no counted module is running.

        Raises:
            LeftOutError: If the call is captured into a CUDA graph; it is skipped.
        """
        if self._skipped:
            if module is self._skipped[0]:
                self._skipped.append(module)
            return True
        if not outermost:
            return False
        if is_capturing():
            self._skipped.append(module)
            raise LeftOutError(str(CaptureError()))
        if not self._training or begins_training():
            return False
        self._skipped.append(module)
        self.passed_over += 1
        return True

    def ends_skipped(self, module: nn.Module) -> None:
        """Note that a module ended while calls are skipped."""
        if module is self._skipped[0]:
            self._skipped.pop()
