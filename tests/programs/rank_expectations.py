"""What the scenarios of ``programs.ranks`` are expected to record and to say."""

from __future__ import annotations

#: Where the record of two processes is compared with that of one, and its steps.
SAME = {
    "validation": [0, 2, 4, 6],  # probe from the sanity check, padding differs from rank to rank
    "training": [0, 2, 4, 6],  # probe from the first batch: three sequences here, two there
    "one_sequence": [0, 3, 6],  # rank 1 has nothing to replay
    "scores": [0, 3, 6],  # the probe's first two sequences, whatever rank recorded them
    "scores_of_training": [0, 3, 6],
    "one_by_one": [0, 3, 6],  # batches of one sequence
    "two_towers": [0, 3, 6],  # rank 1 has a share of the one model only
    "given": [0, 3, 6],
    "importance": [0, 3, 6],  # rank 1 weighs one of two models
    "importance_of_batches": [0, 2],  # from each rank's own backward
    "batch": [0, 2],  # two batches per step
    "sharded": [0, 2, 4],
    "resumed": [0, 2, 4, 6, 8],
}
FAILING = {
    "fails_in_replay": [0, 4, 6],
    "fails_before_replay": [0, 4, 6],
    "fails_in_observation": [0, 4],
    "fails_before_observation": [0, 4],
    "fails_in_packing": [0, 4],
    "fails_in_first_replay": [2, 4, 6],
    "fails_in_first_observation": [2, 4],
}
#: Where nothing that could be replayed begins at the data, on all ranks or on one alone.
SWITCHING = [
    "no_call_begins_at_the_data",
    "none_begins_there_on_rank_0",
    "none_begins_there_on_rank_1",
    "no_validation_call_begins_there",
]
#: What rank 1 alone has to say, who says it, and the steps of the samples.
TOLD = {
    "one_has_hooks": ("rank 1: forward hooks were left out of replays", 0, [0, 3, 6]),
    "one_fails_late": ("rank 1: `on_before_backward` failed: RuntimeError: injected", 0, [0, 4]),
    "one_cannot_record": (
        "rank 1: the probe could not be recorded: RuntimeError: injected",
        0,
        [0, 2, 4, 6],
    ),
    "one_fails_before_a_crash": ("rank 1: `on_before_backward` failed: RuntimeError: injected", 1, [0]),
}
