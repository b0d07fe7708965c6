"""The arguments that all monitors take, whatever trains: documented here, checked by :class:`.Settings`."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Literal

from lightning_geo.monitor.alerts import Alerts
from lightning_geo.monitor.settings import Settings
from lightning_geo.utils.warn_once import WarnOnce

__all__ = ["MonitorArguments"]


class MonitorArguments:
    """The arguments of a monitor: metrics, steps, inputs, and where results go. See ``__init__``."""

    def __init__(
        self,
        every_n_steps: int | None = None,
        schedule: Callable[[int], bool] | None = None,
        max_overhead: float | None = None,
        metrics: str | list[str] | None = None,
        layers: int | list[int] | str | None = None,
        rank: int = 8,
        source: Literal["probe", "batch"] = "probe",
        probe: Any = None,
        probe_size: int = 16,
        probe_tokens: int | None = 16_384,
        probe_in_checkpoint: bool = True,
        patterns: bool = True,
        module: str | None = None,
        baseline: str | os.PathLike[str] | None = None,
        special_token_ids: list[int] | None = None,
        max_queries: int | Literal["auto"] | None = "auto",
        weights_every_n_samples: int = 10,
        importance_every_n_samples: int = 5,
        loss_fn: Callable[..., Any] | None = None,
        scalars: Literal["model", "layer", "head"] = "model",
        alerts: Alerts | bool | str | os.PathLike[str] = True,
        strict: bool = False,
        name: str = "geometry",
    ) -> None:
        """Check the arguments.

        Args:
            every_n_steps: Optimizer steps between samples (default 50); step 0 is always a sample.
            schedule: ``step -> bool`` instead. It is called on rank 0 alone; with several ranks the answer
                takes a broadcast at each step.
            max_overhead: Share of the run's time that samples may take (0.01 for one per cent), instead.
                Samples are taken less often when they are expensive; the record has the steps that were
                taken. On a GPU the time is that of the device and of the training thread, and what the other
                thread itself computes; not that of LAPACK's threads, whose cores training leaves idle.
            metrics: Families or single metrics, ``"metric:entropy"`` where both have the name. ``None`` for
                the families ``entropy``, ``pattern``, ``cone``, ``subspace``, ``stream``, ``head``,
                ``updates`` and ``masks``. ``weights``, ``projection``, ``gates``, ``importance`` and
                ``score_spectra`` are measured if they are named. Metrics that are not requested are not
                computed. Those of :func:`lightning_geo.register_metric` are named like any other.
            layers: Layer indices, or a regular expression on module names; ``None`` for all. One that matches
                no layer is an error before training begins, as soon as there is a probe to try it on.
                Coverage then counts these layers alone. On a probe the third sample and later ones do not
                follow the others, if the second one has shown that this changes nothing; ``source="batch"``
                always follows them.
            rank: Dimensions of the subspaces that are compared, at most half a head.
            source: ``"probe"`` replays fixed inputs in eval mode; ``"batch"`` observes the training forward
                itself: no extra forward, but batch noise, and no ``drift`` and ``velocity``.
            probe: A batch or a dataloader to use as the probe. ``None`` records it from the run: from the
                validation batches of Lightning's sanity check, else from the first training batches.
            probe_size: Sequences in the probe, over all ranks; where rows are packed, documents are
                sequences.
            probe_tokens: Real tokens in the probe, over all ranks: a run with long sequences keeps fewer of
                them, but at least one. A call that cannot be divided is kept whole. ``None`` for no limit.
            probe_in_checkpoint: Whether checkpoints carry the probe's inputs, so that a resumed run continues
                with the same.
            patterns: Whether the record keeps where heads look: the attention of each head in the first
                sequence of the probe, pooled to 32 × 32 bytes, at the samples that get pictures, with that
                sequence's tokens beside it, as words if the run has a ``tokenizer``. The tab "Geometry" shows
                them; ``source="batch"`` has none.
            module: Name of the observed model in what is trained; ``None`` finds it.
            baseline: Directory of another run whose first sample ``drift`` is measured against.
            special_token_ids: Input ids that count as special; ``None`` asks the model's config. BERT's
                config has none, so that ``special_mass`` is absent without them.
            max_queries: Query rows to measure per sequence, drawn at random: linear cost on long sequences.
                Means over rows are then estimates with standard errors (``record["entropy.stderr"]``; 1.96 of
                them cover the exact value in 95 of 100 draws). ``max_logit`` and ``key_entropy`` are absent,
                however short the sequences; everything else stays exact. The rows differ between calls,
                layers and ranks, and are the same at every sample. ``"auto"`` draws 512 rows of sequences
                above 2,048 tokens, warns once and names the modules in ``record.coverage``, and measures all
                rows of shorter ones. ``None`` measures all.
            weights_every_n_samples: Samples between those that also measure what needs the parameters alone
                (``weights``, the angles of ``projection``; default 10): weights move slowly. The first and
                the last sample always do.
            importance_every_n_samples: Samples from one with ``importance`` to the next; the run's first and
                last sample have it too. On a probe each costs a forward and a backward of every sequence.
            loss_fn: The loss of ``importance`` on a probe, ``loss_fn(output, *args, **kwargs)`` of one call
                of the observed model; ``None`` for the ``loss`` that the model itself returns.
            scalars: Finest scalars of loggers: ``"model"``, ``"layer"`` or ``"head"``. The record has them
                all.
            alerts: Whether findings (attention that collapses, a layer that is frozen, a lost mask) are
                reported while the run goes on: as a log line, as text in TensorBoard, as an alert of W&B, and
                in the record. The path of a YAML file, or :class:`lightning_geo.Alerts`, changes and adds
                rules, calls a function, saves a checkpoint or stops training.
            strict: Raise whatever goes wrong instead of warning once.
            name: First part of all keys; give each of two monitors its own.

        Raises:
            ValueError: If an argument's value does not fit.
            TypeError: If an argument is of a wrong type.
        """
        settings = Settings.of(
            every_n_steps=every_n_steps,
            schedule=schedule,
            max_overhead=max_overhead,
            metrics=metrics,
            layers=layers,
            rank=rank,
            source=source,
            probe=probe,
            probe_size=probe_size,
            probe_tokens=probe_tokens,
            probe_in_checkpoint=probe_in_checkpoint,
            patterns=patterns,
            module=module,
            baseline=baseline,
            special_token_ids=special_token_ids,
            max_queries=max_queries,
            weights_every_n_samples=weights_every_n_samples,
            importance_every_n_samples=importance_every_n_samples,
            loss_fn=loss_fn,
            scalars=scalars,
            alerts=alerts,
            strict=strict,
            name=name,
        )
        self._settings, self._warn_once = settings, WarnOnce(strict, name)
        self._prepare()

    def _prepare(self) -> None:
        """Create the parts of a subclass that need the arguments."""
