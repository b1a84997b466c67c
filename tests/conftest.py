"""Fixtures that more than one folder of tests uses, and how hypothesis runs.

The default model is fetched once through `herder.weights` into the user's own cache, as `herder pull smollm2` does.
"""

from __future__ import annotations

import os

import hypothesis

# No deadline: these machines are shared. In CI the same examples every time, so that a failure is the commit's.
hypothesis.settings.register_profile("herder", deadline=None, derandomize=bool(os.environ.get("CI")), print_blob=True)
hypothesis.settings.load_profile("herder")
