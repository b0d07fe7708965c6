"""States of the global generators."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

__all__ = ["generator_states", "seeded_states", "set_generator_states"]


def generator_states() -> tuple[Any, ...]:
    return torch.get_rng_state(), np.random.get_state(), random.getstate()


def set_generator_states(states: tuple[Any, ...]) -> None:
    torch.set_rng_state(states[0])
    np.random.set_state(states[1])
    random.setstate(states[2])


def seeded_states(seed: int) -> tuple[Any, ...]:
    before = generator_states()
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)
    states = generator_states()
    set_generator_states(before)
    return states
