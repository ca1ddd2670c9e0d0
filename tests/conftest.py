"""Settings for all tests. Fixtures live beside the tests that use them."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import HealthCheck, settings

LINK_EXAMPLES = int(os.environ.get("RONDEVUD_LINK_EXAMPLES", "300"))
"""How many runs the state machine of the link gets; CI and the soak test ask for more."""

# No deadline: on a busy machine a slow example is no failure, and each test has its time-out.
settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), max_examples=200, print_blob=True)
settings.register_profile("link", parent=settings.get_profile("dev"), max_examples=LINK_EXAMPLES, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))


def pytest_configure() -> None:
    """What a shell starts in the background ignores SIGINT, and so would all that the tests start and interrupt."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The tests that are given the longest time come first, so that no process is left alone with one of them at the end."""
    items.sort(key=_time_limit, reverse=True)


def _time_limit(item: pytest.Item) -> float:
    marker = item.get_closest_marker("timeout")
    return float(marker.args[0]) if marker is not None else 0.0
