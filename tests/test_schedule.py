"""Which steps are sampled."""

import pytest

from lightning_geo.schedule import Schedule


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, [0, 50, 100]),
        ({"every_n_steps": 30}, [0, 30, 60, 90, 120]),
        ({"schedule": lambda step: step in (7, 110)}, [0, 7, 110]),  # step 0 whatever it says
    ],
)
def test_steps(arguments, expected):
    schedule = Schedule(**arguments)
    assert [step for step in range(121) if schedule(step)] == expected


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"every_n_steps": 0}, ValueError, "`every_n_steps` to be an integer of at least 1 but got 0"),
        ({"every_n_steps": -5}, ValueError, "but got -5"),
        ({"every_n_steps": 2.5}, ValueError, "but got 2.5"),
        ({"every_n_steps": True}, ValueError, "but got True"),
        ({"every_n_steps": 5, "schedule": bool}, ValueError, "either `every_n_steps` or `schedule`"),
        ({"schedule": 5}, TypeError, "`schedule` to be a callable"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Schedule(**arguments)
