"""The engines that tests run over.

`RONDEVUD_TEST_ENGINE` (``aiortc`` or ``libdatachannel``) chooses the one that whole daemons use in tests which are not about
engines; without it they use what users get: ``auto``.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable

from rondevud.transport.aiortc import AiortcEngine
from rondevud.transport.base import Engine
from rondevud.transport.libdatachannel import LibdatachannelEngine

HAS_WHEELS = sys.version_info >= (3, 12) and platform.machine() in {"x86_64", "aarch64"}
"""Whether the package index has libdatachannel for here. Where it has, a missing library fails the tests."""

ENGINES: dict[str, Callable[..., Engine]] = {"aiortc": AiortcEngine}
if HAS_WHEELS:
    ENGINES["libdatachannel"] = LibdatachannelEngine

WANTED = os.environ.get("RONDEVUD_TEST_ENGINE", "auto")

TRANSPORT = f'[transport]\nengine = "{WANTED}"\n'
"""What the configuration of a daemon under test says of it."""


def with_engine(config: str, name: str) -> str:
    """A configuration that holds `TRANSPORT`, with that engine."""
    assert TRANSPORT in config
    return config.replace(TRANSPORT, f'[transport]\nengine = "{name}"\n')
