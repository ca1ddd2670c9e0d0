"""Debian's policy, by what has been looking for offences beside all the other tests."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]


def test_lintian_finds_no_errors(lintian):
    said, _ = lintian.communicate(timeout=500)
    assert lintian.returncode == 0, said
