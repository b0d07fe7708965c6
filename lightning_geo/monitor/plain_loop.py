"""A loop that a person wrote, with or without Fabric or accelerate: :func:`watch`."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.hooks import RemovableHandle

from lightning_geo.monitor.arguments import MonitorArguments
from lightning_geo.monitor.experiments import as_logger
from lightning_geo.monitor.loop_host import LoopHost
from lightning_geo.monitor.run import Run
from lightning_geo.observe.replay.call_hooks import on_call
from lightning_geo.observe.replay.undisturbed_run import replay_depth
from lightning_geo.storage.record import GeometryRecord
from lightning_geo.utils.arguments import check_type
from lightning_geo.utils.errors import ArgumentError, call_all

__all__ = ["LoopMonitor", "watch"]


class LoopMonitor(MonitorArguments):
    """What :func:`watch` returns: measures while its context is open."""

    def attach(self, host: LoopHost) -> None:
        """Watch a loop.

        Args:
            host: Answers for it.
        """
        self._host = host

    def __enter__(self) -> LoopMonitor:
        self._warn_once.late = False
        try:
            with self._warn_once.about("the run could not be prepared"):
                self._run.fit_starts(self._host)
                self._start()
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                with self._warn_once.about("the last sample failed"):
                    self._run.training_ends()
                    self._run.finish(self._host)
        finally:
            self._leave()

    def step(self) -> None:
        """Tell that a step is done; to be called after ``optimizer.step()``.

        Where accelerate accumulates gradients, so that ``optimizer.step()`` does nothing, this does nothing
        either. Other loops that accumulate call it once an update.
        """
        if self._host.accumulating:
            return
        with self._warn_once.about("`step` failed"):
            self._host.count += 1
            self._run.batch_ended(self._host)
            self._run.deliver(self._host)
            self._stand_back()
            unannounced = self._run.waits
            if unannounced:
                self._run.make_up()
                self._warn_once.warn(
                    "a sample was taken a step late",
                    "no optimizer of torch.optim announced the update: skipped, or made by another class",
                )
            self._begin(wait=not unannounced)

    @property
    def last_record(self) -> GeometryRecord | None:
        """The last sample, which is waited for; None before the first."""
        self._run.samples.delivery.flush()
        return self._run.samples.delivery.record

    @property
    def metrics(self) -> dict[str, float]:
        """The last model summaries by key, ``geometry/entropy`` say; the same on every rank."""
        self._run.samples.delivery.flush()
        return dict(self._host.summaries)

    @property
    def should_stop(self) -> bool:
        """Whether a finding asks to end training, with ``alerts=Alerts(stop=…)``; on every rank."""
        return self._host.stopped

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs: containers, numbers and tensors."""
        return self._run.state_dict() | {"steps": self._host.count}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where :meth:`state_dict` was called; before the first step, inside the context or before it.

        Args:
            state_dict: From an earlier session.
        """
        within = self._within
        self._stand_back()
        self._run.stop()
        self._run.samples.load_state_dict(dict(state_dict))
        self._host.count = int(state_dict.get("steps", 0))
        if within:
            with self._warn_once.about("the run could not be resumed"):
                self._start()

    # -- within

    def _prepare(self) -> None:
        alerts = self._settings.alerts
        if alerts is not None and alerts.checkpoint is not None:
            raise ArgumentError(
                "Expected `alerts` without `checkpoint` in a loop of one's own, which saves its checkpoints "
                f"itself, but got {alerts.checkpoint!r}. Save one in a function: `Alerts(notify=…)`."
            )
        self._run = Run(self._settings, self._warn_once)
        #: hooks in the model, until the update of the step
        self._hooks = contextlib.ExitStack()
        #: the hook in torch's optimizers, whether it was called in this step or not
        self._optimizer_hook: RemovableHandle | None = None
        self._updated = False
        self._within = False

    def _start(self) -> None:
        self._within = True
        self._run.training_starts(self._host)
        self._begin()

    def _begin(self, *, wait: bool = True) -> None:
        """Begin a step.

        Args:
            wait: Whether its sample waits for the update.
        """
        host, run = self._host, self._run
        host.waits_for_update = wait
        first = run.samples.inputs.records  # in a session's first step, sampled or not
        run.batch_starts(host, None, host.count)
        if not host.context.known:
            self._hooks.callback(on_call(host.module, self._look))
        if run.pending or first:
            self._updated = False
            self._optimizer_hook = register_optimizer_step_pre_hook(self._update_begins)

    def _look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled() and not replay_depth():
            self._host.context.look()

    def _update_begins(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        """Sample the weights as they enter the update; called by torch before any optimizer's step."""
        run, host = self._run, self._host
        if self._updated or not host.updated_by(optimizer) or run.samples.inputs.lacks_calls:
            return
        self._updated = True  # torch calls hooks one after the other: none may remove itself here
        with self._warn_once.about("`optimizer.step` could not be observed"):
            self._hooks.close()
            run.samples.inputs.step_ends()
            run.optimizer_starts(host)
            run.backward_starts(host, None)
            run.backward_ended(host)

    def _leave(self) -> None:
        """Leave nothing behind, in the model or open."""
        self._within = False
        call_all(self._stand_back, self._run.end, self._host.close, self._let_go)

    def _stand_back(self) -> None:
        """Leave no hook behind."""
        handle, self._optimizer_hook = self._optimizer_hook, None
        if handle is not None:
            handle.remove()
        self._hooks.close()

    def _let_go(self) -> None:
        self._run.samples.sampler = None


def watch(
    model: nn.Module,
    *,
    logdir: str | os.PathLike[str] | None = None,
    logger: Any = None,
    **arguments: Any,
) -> LoopMonitor:
    """Log the geometry of attention while a loop of one's own trains a transformer.

    What is measured, what the arguments mean, and which keys are logged is as with
    :class:`~lightning_geo.GeometryMonitor`. Call ``step`` after each ``optimizer.step()``. The sample of a
    step is taken just before its update, and a last one when the context ends without an exception; training
    is bit-identical with and without it. The probe is what the loop gives the model in its first step,
    unless ``probe=`` is given.

    Models of ``fabric.setup``, ``accelerator.prepare``, ``deepspeed.initialize``, ``fully_shard`` and
    ``FullyShardedDataParallel`` are taken as they are; every rank makes the same calls. Rank 0 logs what was
    found, the findings and a summary to standard error, beside a bar of tqdm, or where logging was set up to;
    ``logging.getLogger("lightning_geo").setLevel(logging.WARNING)`` keeps the warnings only.

    ``importance`` with ``source="batch"`` needs a loop that trains by the ``loss`` which the model returns:
    how the loop scales another one is unknown.

    Args:
        model: The model, as the loop calls it.
        logdir: Directory of this run alone, in which to write charts and the record, for TensorBoard.
        logger: A SummaryWriter, a wandb.Run, a logger of Fabric, or a list of these, instead. Without either
            the record has a directory of its own, ``lightning_geo/version_0``, ``version_1``, …
        **arguments: Those of :class:`~lightning_geo.monitor.arguments.MonitorArguments`: ``every_n_steps``,
            ``metrics``, ``probe``, ``max_overhead``, ``alerts``, ``name``, …

    Returns:
        A context manager with ``step``, ``last_record``, ``metrics``, ``should_stop``, ``state_dict`` and
        ``load_state_dict``.

    Raises:
        TypeError: If an argument is unknown or of a wrong type.
        ValueError: If an argument's value does not fit.

    Example:
        >>> import tempfile, torch
        >>> layer = torch.nn.TransformerEncoderLayer(16, nhead=2, batch_first=True)
        >>> model = torch.nn.TransformerEncoder(layer, num_layers=3, enable_nested_tensor=False)
        >>> optimizer = torch.optim.AdamW(model.parameters())
        >>> with watch(model, every_n_steps=2, logdir=tempfile.mkdtemp()) as geometry:
        ...     for _ in range(4):
        ...         model(torch.randn(8, 10, 16)).square().mean().backward()
        ...         optimizer.step()
        ...         optimizer.zero_grad()
        ...         geometry.step()
        >>> geometry.last_record.step, geometry.last_record["entropy"].shape
        (4, (3, 2))
    """
    check_type("model", model, nn.Module, "a torch.nn.Module")
    if logdir is not None and logger is not None:
        raise ArgumentError(
            "Expected `logdir` or `logger` but got both. Leave out `logdir`: a logger has a place of its own."
        )
    several = logger if isinstance(logger, (list, tuple)) else [] if logger is None else [logger]
    monitor = LoopMonitor(**arguments)
    monitor.attach(LoopHost(model, logdir, [as_logger(given) for given in several]))
    return monitor


def _with_all_arguments() -> inspect.Signature:
    """Return the signature of :func:`watch` with the arguments that it passes on, for help and editors."""
    own = inspect.signature(watch)
    passed_on = inspect.signature(MonitorArguments).parameters.values()
    named = [p.replace(kind=p.KEYWORD_ONLY) for p in passed_on]
    return own.replace(parameters=[*list(own.parameters.values())[:-1], *named])


watch.__signature__ = _with_all_arguments()  # type: ignore[attr-defined]
