"""The LightningModule of a description: a model of attentions and parts, and what trains it."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from run_machine.attentions import ATTENTIONS, Attention
from run_machine.descriptions import VOCABULARY, WIDTH, Model
from run_machine.failures import Failure
from run_machine.parts import PARTS, Losses

__all__ = ["Module", "loader"]


def loader(batches: list[dict[str, Tensor]], *, shuffle: bool = False) -> DataLoader[Any]:
    """One batch at a time."""
    return DataLoader(batches, batch_size=None, shuffle=shuffle)  # type: ignore[arg-type]


class Encoder(nn.Module):
    """Parts and layers, taking turns."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.parts = nn.ModuleList([PARTS[name]() for name in model.parts])
        made = [ATTENTIONS[model.attention]() for _ in range(1 if model.tied else model.layers)]
        self.layers = nn.ModuleList(made * model.layers if model.tied else made)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        for part in self.parts:
            x = part(x)
        for layer in self.layers:
            x = layer(x, visible)
        return x


class Net(nn.Module):
    """Embedding and encoder."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.embed, self.encoder = nn.Embedding(VOCABULARY, WIDTH), Encoder(model)

    def forward(self, ids: Tensor, mask: Tensor, extra: Tensor | None = None) -> Tensor:
        x = self.embed(ids)
        return self.encoder(x if extra is None else x + extra, mask)  # type: ignore[no-any-return]


class Module(pl.LightningModule):
    """A LightningModule of a description.

    Args:
        model: The description.
        seed: Of its weights.
    """

    def __init__(self, model: Model, seed: int) -> None:
        super().__init__()
        self.model = model
        self.failure = Failure()
        self.automatic_optimization = not model.manual
        random_states = torch.get_rng_state()
        torch.manual_seed(seed)
        if model.root in ("child", "keywords"):
            self.net = Net(model)
        else:
            self.embed, self.encoder = nn.Embedding(VOCABULARY, WIDTH), Encoder(model)
        torch.set_rng_state(random_states)
        #: what hooks of the user's gathered since the last step, and how much in each step
        self.gathered: list[Tensor] = []
        self.counts: list[int] = []
        for layer in self.layers if model.gathers else ():
            layer.register_forward_hook(self.gather)

    @property
    def layers(self) -> list[Attention]:
        """Each attention once."""
        return list(dict.fromkeys(m for m in self.modules() if isinstance(m, Attention)))

    def gather(self, module: nn.Module, args: Any, output: Tensor) -> None:
        self.gathered.append(output.mean())

    def forward(self, ids: Tensor, mask: Tensor, extra: Tensor | None = None) -> Tensor:
        self.failure("forward")
        x = self.embed(ids)
        out = self.encoder(x if extra is None else x + extra, mask)
        if self.model.root == "itself":
            self.log("norm", out.detach().norm(), on_step=True, on_epoch=True, batch_size=len(ids))
        return out  # type: ignore[no-any-return]

    def run(self, batch: dict[str, Tensor]) -> Tensor:
        """One call of the model."""
        ids, mask, extra = batch["ids"], batch["mask"], batch.get("extra")
        if self.model.root == "keywords":
            return self.net(**batch)  # type: ignore[no-any-return]
        if self.model.root == "child":
            return self.net(ids, mask) if extra is None else self.net(ids, mask, extra)  # type: ignore[no-any-return]
        if self.model.root == "stepwise":
            x = self.embed(ids)
            return self.encoder(x if extra is None else x + extra, mask)  # type: ignore[no-any-return]
        return self(ids, mask, extra)  # type: ignore[no-any-return]

    def loss(self, batch: dict[str, Tensor]) -> Tensor:
        """All calls of a step."""
        shorter = {name: x[:1, : max(2, x.shape[1] - 1)] for name, x in batch.items() if name != "extra"}
        if self.model.calls == "quiet first":
            with torch.no_grad():
                self.run(shorter)
        loss = (self.run(batch) - 1).square().mean()
        if self.model.calls == "twice":
            loss = loss + self.run(shorter).square().mean()
        for module in self.modules():
            if isinstance(module, Losses):
                loss = loss + 0.1 * sum(module.losses, torch.zeros(()))
                module.losses.clear()
        self.counts = [*self.counts[-8:], len(self.gathered)]
        loss = loss + 0.1 * sum(self.gathered, torch.zeros(()))
        self.gathered.clear()
        return loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.failure("training_step")
        loss = self.loss(batch)
        self.log("loss", loss.detach(), on_step=True, on_epoch=True, batch_size=len(batch["ids"]))
        if self.model.manual:
            optimizer = self.optimizers()
            self.manual_backward(loss)
            optimizer.step()  # type: ignore[union-attr]
            optimizer.zero_grad()  # type: ignore[union-attr]
        self.failure("training_step_end")
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.failure("validation_step")
        self.log("validation", self.loss(batch), batch_size=len(batch["ids"]))

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.failure("test_step")
        self.log("test", self.loss(batch), batch_size=len(batch["ids"]))

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        self.failure("predict_step")
        return self.loss(batch)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        self.failure("optimizer_step")
        super().optimizer_step(*args, **kwargs)
        self.failure("optimizer_step_end")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=0.01)
