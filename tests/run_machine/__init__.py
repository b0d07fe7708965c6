"""A stateful search for what a user does with a run and the monitor does not survive.

``machine.py`` draws (``strategies.py``) a model (``models.py``, of ``attentions.py`` and ``parts.py``) and
then what a user does with runs of it (``runs.py``): fit, validate, fail, interrupt, resume, reuse, copy,
nest, forget; ``descriptions.py`` and ``operations.py`` describe them. Each operation is done twice, on a side
whose Trainers have monitors and on an unwatched twin. After each operation ``same_as_twin.py`` compares the
sides: weights, optimizers, generators, Python state, the user's metrics. ``records.py`` looks for the
samples, each in its run's place, ``left_behind.py`` for patches, open files and tensors that were left
behind. ``logged.py`` reads loggers back: TensorBoard after each operation, an offline run of W&B's once it is
over. ``values.py`` compares entropies, exact ones and estimates, with a float64
reference on the twin's snapshots. ``two_ranks.py`` runs programs of these operations in two processes, which
compare each rank's share; ``pair.py`` starts them.

``pytest tests/run_machine`` draws the same examples every time. To search for hours, with new ones each time:
``pytest tests/run_machine --hypothesis-profile=deep`` (or ``HYPOTHESIS_PROFILE=deep``).
"""
