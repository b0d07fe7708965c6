"""A callback of the user's that does something once in a hook."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytorch_lightning as pl

__all__ = ["ACTS_IN", "Acts"]


class Acts(pl.Callback):
    """Does something once in a hook."""

    def __init__(self) -> None:
        self.action: Callable[[], None] | None = None
        self.hook, self.count = "", 0

    def act(self, hook: str) -> None:
        if hook != self.hook or self.action is None:
            return
        if self.count > 0:
            self.count -= 1
            return
        action, self.action = self.action, None
        action()


#: Hooks in which the user's callback acts.
ACTS_IN = (
    "on_train_start", "on_train_batch_start", "on_before_backward", "on_after_backward",
    "on_before_zero_grad", "on_train_batch_end", "on_validation_batch_end", "on_train_epoch_end",
)  # fmt: skip


def _acting(name: str) -> Callable[..., None]:
    def hook(self: Acts, *args: Any, **kwargs: Any) -> None:
        self.act(name)

    return hook


for _name in ACTS_IN:
    setattr(Acts, _name, _acting(_name))
