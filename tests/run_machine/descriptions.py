"""Descriptions of a tiny model and of its batches, of unequal lengths and keys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from run_machine.short import Short

__all__ = ["CALLS", "HEADS", "ROOTS", "VOCABULARY", "WIDTH", "Batches", "Model"]

WIDTH, HEADS, VOCABULARY = 8, 2, 20

ROOTS = ("child", "keywords", "split", "itself", "stepwise")
CALLS = ("once", "twice", "quiet first")


@dataclass(frozen=True)
class Batches:
    """The data of a run.

    Args:
        lengths: Of the sequences of each batch.
        extra: Whether each batch has the optional key.
        shuffle: Whether their order is drawn from the global generator.
        validation: How many of them are validated on too; 0 for no validation.
    """

    lengths: tuple[tuple[int, ...], ...]
    extra: tuple[bool, ...]
    shuffle: bool = False
    validation: int = 0

    def make(self, seed: int) -> list[dict[str, Tensor]]:
        """The batches, padded on the right."""
        generator = torch.Generator().manual_seed(seed)
        batches = []
        every = self.lengths if seed < 100 else self.lengths[::-1]  # another rank's
        for lengths, extra in zip(every, self.extra, strict=True):
            longest = max(lengths)
            mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
            ids = torch.randint(1, VOCABULARY, (len(lengths), longest), generator=generator)
            batch = {"ids": ids * mask, "mask": mask}
            if extra:
                batch["extra"] = torch.rand(len(lengths), longest, 1, generator=generator)
            batches.append(batch)
        return batches


@dataclass(frozen=True, repr=False)
class Model(Short):
    """Description of a LightningModule.

    Args:
        root: What the trainer feeds: a child of the LightningModule by position, or by keywords; an encoder
            behind an embedding; the LightningModule, which logs in its forward; its step alone.
        attention: How attention is computed.
        parts: What writes state between the layers.
        calls: How often a step calls the model.
        layers: How many.
        tied: Whether all layers are the same module.
        gathers: Whether hooks of the user's gather activations for the loss.
        manual: Whether the LightningModule optimizes by hand.
    """

    root: str = "child"
    attention: str = "sdpa"
    parts: tuple[str, ...] = ()
    calls: str = "once"
    layers: int = 1
    tied: bool = False
    gathers: bool = False
    manual: bool = False
