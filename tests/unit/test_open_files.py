from __future__ import annotations

import resource

import pytest

from rondevud import open_files

UNLIMITED = resource.RLIM_INFINITY


@pytest.mark.parametrize(
    ("soft", "hard", "limit"),
    [
        (1_024, 1_048_576, 4_096),
        (1_024, UNLIMITED, 4_096),
        (1_024, 1_024, 1_024),
        (100_000, 100_000, 100_000),
        (UNLIMITED, UNLIMITED, 4_096),
    ],
)
def test_the_soft_limit_is_raised_as_far_as_wanted_and_allowed(soft, hard, limit, monkeypatch, caplog):
    given = []
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _which, limits: given.append(limits))
    assert open_files.raise_limit() == limit
    assert given == ([(limit, hard)] if soft == 1_024 else [])
    assert ("Only 1024 files may be open (4096 are wanted)" in caplog.text) == (limit < 4_096)
