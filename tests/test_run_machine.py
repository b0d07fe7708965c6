"""What a user does with runs, drawn: training is as without a monitor, every sample is where it belongs."""

from __future__ import annotations

from hypothesis import HealthCheck, Phase, settings

from run_machine.machine import RunMachine

_deep = settings.get_current_profile_name() == "deep"

RunMachine.TestCase.settings = settings(
    max_examples=settings.default.max_examples if _deep else 25,
    stateful_step_count=20 if _deep else 10,
    derandomize=not _deep,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.generate, Phase.shrink) if _deep else (Phase.generate,),
)

TestRuns = RunMachine.TestCase
