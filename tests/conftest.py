"""Settings for all tests. Fixtures live beside the tests that use them."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

LINK_EXAMPLES = int(os.environ.get("RONDEVUD_LINK_EXAMPLES", "300"))
"""How many runs the state machine of the link gets; CI and the soak test ask for more."""

# No deadline: on a busy machine a slow example is no failure, and each test has its time-out.
settings.register_profile("dev", max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", parent=settings.get_profile("dev"), max_examples=200, print_blob=True)
settings.register_profile("link", parent=settings.get_profile("dev"), max_examples=LINK_EXAMPLES, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE") or ("ci" if os.environ.get("CI") else "dev"))
