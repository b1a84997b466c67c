"""Fixtures that more than one folder of tests uses, and how hypothesis runs."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
import pytest

# No deadline: these machines are shared. In CI the same examples every time, so that a failure is the commit's.
hypothesis.settings.register_profile("herder", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
hypothesis.settings.load_profile("herder")


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The default model's file: where `herder pull smollm2` put it, fetched the same way the first time."""
    from herder.weights import store

    return store.resolve("smollm2")
