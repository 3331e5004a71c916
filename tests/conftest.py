import sys
from pathlib import Path

import pytest
import support

# For bench/. Last in the path, so that the blockops under test stays the one that is installed or
# built there.
sys.path.append(str(Path(__file__).parents[1]))


def pytest_collection_modifyitems(config, items):
    """Triton's interpreter runs what has a `target`, and its own files; and as it is slow, each
    test and case in one dtype and one layout: they take turns."""
    if not support.INTERPRETED:
        return
    runs = {}
    for item in items:
        parameters = dict(item.callspec.params) if hasattr(item, "callspec") else {}
        if item.path.name.startswith("check_"):
            runs[item] = [item]
        elif "target" in parameters:
            parameters |= {"dtype": None, "layout": None}
            runs.setdefault((item.originalname, str(parameters)), []).append(item)
    kept = [turns[index % len(turns)] for index, turns in enumerate(runs.values())]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_runtest_setup(item):
    """Skips, with the reason, what the backend or the device of a test's `target` cannot run."""
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if "target" in parameters:
        op = parameters["case"].op if "case" in parameters else parameters["op"]
        if reason := support.why_not(parameters["target"], op):
            pytest.skip(reason)


@pytest.fixture(params=support.TARGETS, ids=str)
def target(request):
    """A backend and a device."""
    return request.param


@pytest.fixture(params=support.PUBLIC_OPS)
def op(request):
    """The name of a public op that has cases."""
    return request.param
