"""How many examples: a fixed set in the usual run, as many as the profile ``deep`` asks for else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings

__all__ = ["examples"]


def examples(count: int) -> Callable[[Any], Any]:
    """Decorate a property with ``count`` fixed examples, or with the number of the profile in use."""
    deep = settings.get_current_profile_name() == "deep"
    return settings(
        max_examples=settings.default.max_examples if deep else count,
        derandomize=not deep,
        deadline=None,
        database=None,
        suppress_health_check=[
            HealthCheck.too_slow,
            HealthCheck.data_too_large,
            HealthCheck.large_base_example,
        ],
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
    )
