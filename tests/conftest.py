"""Shared by all tests: one thread, reproducible properties, shapes that can be checked."""

from __future__ import annotations

import gc
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
import transformers
from hypothesis import settings

pytest.register_assert_rewrite("support")  # before anything of it is imported

from support import shapes  # noqa: E402

shapes.install()  # before anything imports the package
gc.disable()  # imports leave no garbage: to look for some took a third of the time until the first test

from support import forks as forking  # noqa: E402

# the hook that skips tests of pages where no browser or no node is installed
from support.programs import close_browser  # noqa: E402
from support.programs import pytest_runtest_setup as pytest_runtest_setup  # noqa: E402

# Commands print as into a pipe, unless a test sets a width.
os.environ.pop("COLUMNS", None)

# W&B lists each installed package at the start of each run, for a sixth of a second.
os.environ["WANDB_X_SAVE_REQUIREMENTS"] = "false"

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


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_is_no_garbage() -> None:
    """Take it out of garbage collection: to look through what was imported took half a second each time."""
    gc.collect()
    gc.freeze()


#: Families whose parts have other names in transformers 4, or whose eager twins cannot run in float64 there.
WRITTEN_FOR_5 = {"vit", "dinov2", "swin", "clip", "distilbert", "gemma2"}


#: Tests that are skipped where a package is older than a version, by name, with the reason.
NEEDING: dict[str, tuple[ModuleType, int, int, str]] = {
    "test_flash_takes_the_lengths_that_it_is_given[modernbert]":
        (transformers, 5, 0, "its ModernBERT takes no lengths"),
    "test_a_layer_takes_few_operations_and_a_sample_not_many_more[padded]":
        (transformers, 5, 0, "operations are bounded for the newest versions alone"),
    "test_agrees_with_flex_attention[all]": (torch, 2, 7, "its flex attention takes powers of 2 alone"),
    "test_agrees_with_flex_attention[sequence and head]":
        (torch, 2, 7, "its flex attention takes powers of 2 alone"),
    "test_flex_attention": (torch, 2, 7, "its flex attention fails with tables in a rule by itself"),
    "test_a_model_computes_what_its_truth_says[flex]":
        (torch, 2, 7, "its flex attention fails with tables in a rule by itself"),
}  # fmt: skip


def older(package: ModuleType, major: int, minor: int) -> bool:
    """Whether the installed package is older than a version."""
    return tuple(map(int, package.__version__.split(".")[:2])) < (major, minor)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Import no program, benchmark or helper to look for examples in its docstrings: they have none."""
    is_helper = collection_path.suffix == ".py" and not collection_path.name.startswith("test_")
    return True if is_helper else None


def pytest_configure(config: pytest.Config) -> None:
    # `--dist loadscope` hands out the modules with the most tests first: the order below is better
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.get_closest_marker("compiles"):
        item.add_marker(pytest.mark.slow)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run modules with slow tests first, so that no process is left with one of them at the end.

    Models whose references do not fit an old transformers are skipped there.
    """
    for item in items:
        package, major, minor, reason = NEEDING.get(item.name, (torch, 0, 0, ""))
        if older(package, major, minor):
            item.add_marker(pytest.mark.skip(reason=reason))
    if older(transformers, 5, 0):
        why = pytest.mark.skip(reason="the reference of this model is written for transformers 5")
        for item in items:
            parts = {*re.split(r"[\[\]-]", item.name)}
            if parts & WRITTEN_FOR_5 or ("score_spectra" in str(item.path) and {"t5", "left"} <= parts):
                item.add_marker(why)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_unconfigure() -> None:
    close_browser()
    gc.unfreeze()  # else Triton reports everything of its own as leaked when the interpreter ends
