"""``docs/faults.md`` names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = set(re.findall(r"`(tests/[\w/.]+)`", (ROOT / "docs" / "faults.md").read_text()))


def test_tests_that_are_named_are_there():
    assert len(NAMED) > 15
    assert [name for name in sorted(NAMED) if not (ROOT / name).exists()] == []


def test_every_test_of_a_fault_is_named():
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "tests" / "faults").glob("test_*.py")}
    assert files <= NAMED
