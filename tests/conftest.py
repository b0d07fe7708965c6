"""Shared by all tests: one thread, reproducible properties, shapes that can be checked."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator

import pytest
import torch
import transformers
from hypothesis import settings

from support import shapes

shapes.install()  # before anything imports the package

from support import forks as forking  # noqa: E402

# the hook that skips tests of pages where no browser or no node is installed
from support.programs import pytest_runtest_setup as pytest_runtest_setup  # noqa: E402

# Commands print as into a pipe, unless a test sets a width.
os.environ.pop("COLUMNS", None)

# Two cores are shared by parallel test processes; more threads only make them wait for each other.
torch.set_num_threads(1)

# Derandomised: the same examples in every run, so that a red build is the change's fault.
# No deadline: the first call of a torch function is slow, and time is no property.
settings.register_profile("lightning_geo", derandomize=True, deadline=None, max_examples=60)
# For hours, with new examples each time: `--hypothesis-profile=deep`, or by the environment.
settings.register_profile("deep", derandomize=False, deadline=None, max_examples=20_000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "lightning_geo"))


@pytest.fixture(scope="session")
def forks() -> Iterator[forking.Forks]:
    """Runs programs in forks of a process that has imported what takes seconds to import."""
    with forking.forks() as found:
        yield found


#: Families whose parts have other names in transformers 4, or whose eager twins cannot run in float64 there.
WRITTEN_FOR_5 = {"vit", "dinov2", "swin", "clip", "distilbert", "gemma2"}


def pytest_configure(config: pytest.Config) -> None:
    # `--dist loadscope` hands out the modules with the most tests first: the order below is better
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run modules with slow tests first, so that no process is left with one of them at the end.

    Models whose references do not fit an old transformers are skipped there.
    """
    if int(transformers.__version__.partition(".")[0]) < 5:
        why = pytest.mark.skip(reason="the reference of this model is written for transformers 5")
        for item in items:
            parts = {*re.split(r"[\[\]-]", item.name)}
            if parts & WRITTEN_FOR_5 or ("score_spectra" in str(item.path) and {"t5", "left"} <= parts):
                item.add_marker(why)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Take what was imported out of garbage collection: to look through it took half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()
