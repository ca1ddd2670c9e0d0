"""The machines, shared by all tests: booting them takes most of the time. Each file is a story, in its order."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.machine import Machine, booted, given, make_bridge

PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="session")
def package() -> Path:
    return given("PACKAGE")


@pytest.fixture(scope="session")
def lintian(package) -> Iterator[subprocess.Popen[str]]:
    """It takes longer than anything else, and so runs beside all tests from the first one on."""
    # The package of the test has no compression, to save the time.
    tags = "uses-no-compression-for-control-tarball,uses-no-compression-for-data-tarball"
    command = ["nice", "lintian", "--allow-root", "--fail-on=error", f"--suppress-tags={tags}", str(package)]
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    with process:
        yield process
        process.kill()


@pytest.fixture(scope="session")
def network() -> None:
    make_bridge()


def prepared(name: str, address: str) -> Iterator[Machine]:
    with booted(name, address) as machine:
        shutil.copytree(PROGRAMS, machine.root / "srv/programs")
        # Under the name that it has at a user's.
        shutil.copy(given("PACKAGE"), machine.root / "srv")
        yield machine


@pytest.fixture(scope="session")
def alice(network) -> Iterator[Machine]:
    yield from prepared("alice", "10.77.0.1")


@pytest.fixture(scope="session")
def bob(network) -> Iterator[Machine]:
    yield from prepared("bob", "10.77.0.2")
