"""Draw many models, go on after failures, and print what values of which dimensions fail."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from harness.checking import check


def survey(strategy: Any, check: Callable[[Any], None], count: int, start: int, verbose: bool) -> None:
    """Draw ``count`` descriptions and print how many of each value fail."""
    drawn: Counter[tuple[str, Any]] = Counter()
    failed: Counter[tuple[str, Any]] = Counter()
    kinds: Counter[str] = Counter()

    @seed(start)
    @settings(
        max_examples=count, database=None, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def one(description: Any) -> None:
        values = [
            (f.name, getattr(description, f.name)) for f in fields(description) if f.type in ("str", "bool")
        ]
        drawn.update(values)
        try:
            check(description)
        except Exception as error:
            failed.update(values)
            kind = type(error).__name__
            kinds[kind] += 1
            if verbose or kind != "Wrong":
                print(f"--- {kind} {'' if kind == 'Wrong' else description!r}\n{error}", flush=True)

    one()
    total, bad = sum(drawn[v] for v in drawn if v[0] == "dtype"), sum(kinds.values())
    print(f"{bad} of {total} fail: {dict(kinds)}")
    for value in sorted(drawn, key=lambda v: (v[0], -failed[v] / drawn[v])):
        print(f"  {value[0]}={value[1]}: {failed[value]} of {drawn[value]}")


if __name__ == "__main__":
    from harness import drawing, families

    every = {
        "sdpa": (drawing.sdpa(), check),
        "sdpa_axes": (drawing.sdpa_axes(), check),
        "by_hand": (drawing.by_hand(), check),
        "flex": (drawing.flex(), check),
        "modules": (drawing.modules(), check),
        "families": (families.families(), families.check_family),
    }
    chosen = sys.argv[3].split(",") if len(sys.argv) > 3 else list(every)
    for name in chosen:
        print(f"=== {name}")
        survey(*every[name], int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0, "-v" in sys.argv)
