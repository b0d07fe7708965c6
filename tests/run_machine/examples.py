"""How many examples are drawn, and runs that are not drawn."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, Phase, settings

from run_machine.descriptions import Batches
from run_machine.operations import Watch

__all__ = ["BATCHES", "DEEP", "WATCHES", "fixed_unless_deep"]

DEEP = settings.get_current_profile_name() == "deep"


def fixed_unless_deep(examples: int, **options: Any) -> settings:
    """Fixed examples in the usual run, as many as the profile ``deep`` asks for else."""
    return settings(
        max_examples=settings.default.max_examples if DEEP else examples,
        derandomize=not DEEP,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink) if DEEP else (Phase.generate,),
        **options,
    )


BATCHES = Batches(((7, 4, 6), (7, 5)), (False, False))
#: Exact beside estimates, in a run that goes on elsewhere and one that follows.
WATCHES = (Watch(), Watch(metrics=None, max_queries=3, name="geometry2"))
