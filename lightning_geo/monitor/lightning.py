"""The Lightning callback, and the keys that it logs. Its hooks are in :mod:`.hooks`."""

from __future__ import annotations

from lightning_geo.monitor.hooks import RunHooks
from lightning_geo.storage.record import GeometryRecord

__all__ = ["GeometryMonitor"]


class GeometryMonitor(RunHooks):
    """Log the geometry of attention while a transformer trains.

    At chosen optimizer steps the monitor observes attention on a *probe* (the first sequences that the
    trainer feeds the model), computes the metrics, and sends them to every logger. The sample at step ``s``
    describes the weights that enter step ``s``: step 0 is the untouched model. A last sample, after the
    ``on_train_end`` of all callbacks, describes the final weights, averaged ones included. Training is
    bit-identical with and without the monitor.

    On a GPU training goes on while another thread waits for a sample's numbers, decomposes matrices on the
    host and makes the record. The training thread writes it in one of the next steps (with several ranks ten
    steps later), but before a checkpoint, a validation, an epoch's end or the next sample, and in the
    sample's own step where a callback or a scheduler monitors one of the keys below. ``last_record`` waits
    for it. On a CPU it is written at once.

    Logged keys, where ``geometry`` is the monitor's ``name``:

    - ``geometry/<metric>``: number of the whole model, the mean over layers and heads (``max_logit``: the
      maximum). Loggers get it for the key metrics, at most 16 in a run, and for others that ``metrics`` names
      while there is room; ``trainer.callback_metrics`` has all, for ``EarlyStopping`` and the like (a metric
      that had a value and lost it is NaN there).
    - ``geometry/coverage``: share of the attention calls that were measured, once it is not 1.
    - ``geometry_layers/<metric>/min``, ``geometry_layers/<metric>/max``: lowest and highest layer of a key
      metric, for charts in TensorBoard (Custom Scalars) and in W&B (no panels of their own, see
      ``lightning-geo wandb-view``). ``max_logit`` also has ``mean``.
    - ``geometry_<family>/<metric>/layer_03``, ``geometry_<family>/<metric>/layer_03/head_05``: numbers of
      layer 3 and of its head 5 for the headline metrics, with ``scalars="layer"`` and ``scalars="head"``.
    - ``geometry_<family>/<metric>`` as a picture in TensorBoard: a headline metric by layer and head (or
      stage, or gate), at ten steps spread over the run, on one scale.
    - ``geometry/layer_by_head``, ``geometry/layer_by_step`` in W&B: these pictures, and the key metrics by
      layer and step. ``geometry/heads`` and ``geometry/report``, at the end: a table of heads, and the HTML
      report. With ``geometry/<metric>`` these are at most 20 panels, for any depth.
    - ``geometry_change/<metric>`` in the summary of a W&B run, to sort and filter runs by: change since the
      first sample, beside last, min and max. ``geometry`` in its config: interval, probe, layout, versions
      (``geometry_monitor`` where the user's config has a ``geometry`` of its own that is no mapping).
    - ``geometry/findings`` as text in TensorBoard, and as alerts of the W&B run: what is wrong or unusual,
      where, since when, and what to try, at the samples that change it (see ``alerts``).
    - ``lightning_geo/geometry/…`` in the event file: the full record of every sample, for ``load_history``,
      the commands and the tab "Geometry". Standard errors of estimates (``entropy.stderr``) are in it alone.

    A model with several stacks has ``geometry/<stack>/<metric>`` and
    ``geometry_<family>/<stack>/<metric>/…``. A key whose metric is not defined at a sample is left out, never
    0.

    The key metrics are ``entropy``, ``normalized_entropy``, ``max_logit``, ``first_mass``,
    ``attention_distance``, ``cone.output``, ``effective_rank.output``, ``qk_alignment``, ``drift.output``,
    ``velocity.output``, ``kurtosis``, ``update_ratio``, ``redundancy``, ``update_size`` and ``importance``.

    The headline metrics are ``entropy``, ``normalized_entropy``, ``max_logit``, ``self_mass``,
    ``previous_mass``, ``first_mass``, ``attention_distance``, ``cone.output``, ``effective_rank``,
    ``qk_alignment``, ``drift``, ``update_ratio`` and ``redundancy``; and where they are measured
    ``symmetry``, ``qk_effective_rank``, ``ov_effective_rank``, ``weight_drift``, ``projection_strength``,
    ``gate_count`` and ``importance``.

    Metrics by family; in brackets what follows a dot, as in ``drift.query``. METRICS.md in
    ``lightning_geo.metrics`` has the formulas.

    - ``entropy``: how focused attention is. ``entropy`` of its rows in nats, ``normalized_entropy`` from 0
      (one key) to 1 (uniform), ``concentration`` (Σ p²), ``max_probability``, ``max_logit`` (the largest
      score), ``key_entropy`` of the attention that keys receive, ``learned_sink_mass`` on a learned sink that
      is no key.
    - ``pattern``: where attention goes. ``self_mass`` on the token itself, ``previous_mass`` and
      ``next_mass`` on its neighbours, ``first_mass`` on the first token, ``backward_mass`` and
      ``forward_mass`` on all tokens before and after, ``special_mass`` on special tokens,
      ``attention_distance`` in tokens.
    - ``cone``: how much vectors point the same way [input, attention, output, head]. ``cone`` from 0 to 1,
      ``cone_index`` not divided by the length, ``mean_cosine`` of two tokens.
    - ``subspace``: where queries, keys, values and head outputs live [query, key, value, output].
      ``effective_rank``, ``participation_ratio`` and ``stable_rank``, the dimensions that they fill;
      ``top_share`` of the strongest direction; ``drift``, rotation since the start; ``velocity``, rotation
      since the sample before. Without brackets: ``qk_alignment`` and ``qk_cosine``, overlap and angle of
      queries and keys; ``query_norm`` and ``key_norm``, their lengths.
    - ``stream``: the layers' outputs. ``hidden_norm``, ``skewness``, ``kurtosis``, and ``update_ratio``, how
      much a layer changes its input.
    - ``head``: ``redundancy``, similarity with the nearest other head of the layer; ``complementarity``, how
      much the heads of a layer add to each other.
    - ``updates``: how training changes the weights of layers, by a fixed draw of them. ``update_size`` since
      the sample before, ``unchanged_share`` of weights that kept their bits, ``bf16_share`` of float32
      weights that were rounded to bfloat16, ``weight_similarity`` with the nearest other layer. The first
      sample of a session has the last one alone.
    - ``masks``: how much masks leave visible to self-attention [probe, batch]. ``future_visible``, the share
      of later tokens; ``padding_visible``, of padding. On a probe ``batch`` is the training forward of step 0
      or the first sample after it, and of every tenth sample from then on; the next sample's record has it.
    - ``weights``, if named: the parameters. ``symmetry``, ``directionality``, ``layer_symmetry`` and
      ``layer_directionality``; ``qk_effective_rank``, ``qk_stable_rank`` and ``qk_norm`` of what a head
      compares; ``ov_effective_rank``, ``ov_stable_rank`` and ``ov_norm`` of what it moves; ``read_overlap``
      [query, key, value] and ``write_overlap`` with other heads; ``weight_drift`` [query, key, value, output]
      since the start.
    - ``projection``, if named: ``projection_strength`` [query, key, value], the share of tokens in what a
      head reads; ``query_value_angle`` and ``key_value_angle``; ``score_norm_share`` [query, key, direction],
      what scores vary by.
    - ``gates``, if named: ``gate`` [open, closed, instance, backward, forward, directional, cluster], how
      clearly a head is of each kind; ``gate_count`` [the same, and mixed], heads of each kind in a layer.
    - ``importance``, if named: ``importance``, how much the loss depends on a head.
    - ``score_spectra``, if named: ``score_entropy`` and the variants of ``von_neumann_entropy`` in *The
      geometry of BERT*.

    The record goes to TensorBoard's directory, the files of the W&B run, or the first logger's ``log_dir``.
    Without these each run, and a copied or unpickled Trainer that goes on in the midst of one, has a
    directory of its own: ``<default_root_dir>/lightning_geo/version_0``, …. URLs of fsspec
    (``s3://bucket/runs``) work like directories. A resumed run voids the samples that it replaces;
    TensorBoard's own charts show both.

    A failure inside the monitor does not stop training: rank 0 warns once, and names the rank that failed.

    The arguments are those of :class:`~lightning_geo.monitor.arguments.MonitorArguments`.

    Example:
        A LightningModule to train, ``encoder.py``::

            import pytorch_lightning as pl
            import torch
            from torch.utils.data import DataLoader

            class Encoder(pl.LightningModule):
                def __init__(self):
                    super().__init__()
                    layer = torch.nn.TransformerEncoderLayer(64, 4, 128, batch_first=True)
                    self.encoder = torch.nn.TransformerEncoder(layer, 2)

                def training_step(self, batch, batch_idx):
                    return self.encoder(batch).square().mean()

                def configure_optimizers(self):
                    return torch.optim.AdamW(self.parameters(), 1e-3)

                def train_dataloader(self):
                    return DataLoader(torch.randn(256, 16, 64), 16)

        A script that trains it, ``train.py``::

            import pytorch_lightning as pl
            from encoder import Encoder
            from lightning_geo import GeometryMonitor, load_history
            from pytorch_lightning.loggers import TensorBoardLogger

            logger = TensorBoardLogger("runs", "script")
            monitor = GeometryMonitor(every_n_steps=10)
            trainer = pl.Trainer(max_epochs=2, callbacks=[monitor], logger=logger)
            trainer.fit(Encoder())

            history = load_history("runs/script/version_0")
            print(history.steps, history["entropy"].shape)  # [sample], [sample, layer, head]

        The same through LightningCLI, ``python cli.py fit --config config.yaml`` with ``config.yaml``::

            trainer:
              max_epochs: 2
              logger:
                class_path: pytorch_lightning.loggers.TensorBoardLogger
                init_args: {save_dir: runs, name: cli}
              callbacks:
                - class_path: lightning_geo.GeometryMonitor
                  init_args:
                    every_n_steps: 10
                    metrics: [entropy, subspace, weights]

        and ``cli.py``::

            from encoder import Encoder
            from pytorch_lightning.cli import LightningCLI

            LightningCLI(Encoder)

        A run that stops when its attention collapses, ``stop.py``::

            import pytorch_lightning as pl
            from encoder import Encoder
            from lightning_geo import GeometryMonitor
            from pytorch_lightning.callbacks import EarlyStopping

            collapse = EarlyStopping(
                "geometry/normalized_entropy", mode="max", divergence_threshold=0.1, patience=1000
            )
            trainer = pl.Trainer(max_epochs=2, callbacks=[GeometryMonitor(every_n_steps=10), collapse])
            trainer.fit(Encoder())
    """

    @property
    def last_record(self) -> GeometryRecord | None:
        """The last sample of the current run; waits for its numbers. None before the first."""
        delivery = self._run.samples.delivery
        delivery.flush()
        return delivery.record
