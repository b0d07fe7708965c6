"""Draw many models, go on after failures, and print the least that each kind of failure needs."""

from __future__ import annotations

import sys
import warnings
from collections import defaultdict
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings

from harness import families, strategies
from harness.checking import Wrong, check

Check = Callable[[Any], None]


def outcome(one: Check, description: Any) -> str | None:
    """The first thing that is wrong; empty where nothing is, None where there is no such model."""
    try:
        one(description)
    except Wrong as error:
        return str(error).splitlines()[1]
    except Exception:
        return None
    return ""


def reduced(one: Check, description: Any) -> Any:
    """Set dimensions back to what is plain, one after the other, as long as something is wrong.

    What the model is told about its padding stays: without, nobody might know of it.
    """
    again = True
    while again:
        again = False
        for field in fields(description):
            if getattr(description, field.name) == field.default or field.name in (
                "how",
                "name",
                "told",
                "structure",
            ):
                continue
            plainer = replace(description, **{field.name: field.default})
            if outcome(one, plainer):
                description, again = plainer, True
    return description


def survey(strategy: Any, one: Check, count: int, start: int) -> None:
    """Draw ``count`` descriptions and print the failures, reduced and grouped by what is left."""
    failed: list[Any] = []

    @seed(start)
    @settings(
        max_examples=count, database=None, deadline=None, phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def collect(description: Any) -> None:
        said = outcome(one, description)
        if said is None:
            print(f"the harness failed: {description!r}")
        elif said:
            failed.append(description)

    collect()
    sizes = ("seed", "heads", "kv_heads", "head_size", "batch", "length", "layers", "memory_length", "extra")
    kinds: dict[str, list[Any]] = defaultdict(list)
    for description in failed:
        least = reduced(one, description)
        left = (f for f in fields(least) if getattr(least, f.name) != f.default and f.name not in sizes)
        words = (f"{f.name}={getattr(least, f.name)}" for f in left if "lengths" not in f.name)
        kinds[" ".join(words)].append(least)
    print(f"{len(failed)} of {count} fail")
    for kind, several in sorted(kinds.items(), key=lambda item: -len(item[1])):
        least = min(several, key=lambda description: len(repr(description)))
        print(f"{len(several):4} {kind}\n     {least!r}\n     {outcome(one, least)}")


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    every: dict[str, tuple[Any, Check]] = {
        "sdpa": (strategies.sdpa(), check),
        "sdpa_axes": (strategies.sdpa_axes(), check),
        "by_hand": (strategies.by_hand(), check),
        "flex": (strategies.flex(), check),
        "modules": (strategies.modules(), check),
        "families": (families.families(), families.check_family),
    }
    chosen = sys.argv[3].split(",") if len(sys.argv) > 3 else list(every)
    for name in chosen:
        print(f"=== {name}")
        survey(*every[name], int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
