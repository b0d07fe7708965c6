"""A stateful search for what a user does with a run and the monitor does not survive.

``machine.py`` draws a model (``models.py``) and then what a user does with runs of it (``runs.py``): fit,
validate, fail, interrupt, resume, reuse, copy, nest, forget. Each operation is done twice, on a side whose
Trainers have monitors and on an unwatched twin. After each operation ``checks.py`` compares the sides:
weights, optimizers, generators, Python state, the user's metrics and files; and looks for the samples, each
in its run's place, and for hooks, patches, open files, tensors and Trainers that were left behind.
``logged.py`` reads loggers back: TensorBoard after each operation, an offline run of W&B's once it is over.
``values.py`` compares entropies, exact ones and estimates, with a float64 reference on the twin's snapshots.
``two_ranks.py`` runs programs of these operations in two processes, which compare each rank's share.

``pytest tests/test_run_machine.py`` draws the same examples every time. To search for hours, with new ones
each time: ``pytest tests/test_run_machine.py --hypothesis-profile=deep`` (or ``HYPOTHESIS_PROFILE=deep``).
"""
