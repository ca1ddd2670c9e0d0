"""The values of the configuration: one function per kind, from what stands in the file to what the daemon uses.

Each raises `ValueError` with the expectation in words. Which key it was about, and what was found, is added by who
called (`rondevud.config_text.problem_of`).
"""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path
from typing import Any


def count_limit(value: Any) -> int | float:
    if value in ("unlimited", math.inf) or (type(value) is int and value == 0):
        return math.inf
    if type(value) is not int or value < 0:
        raise ValueError('expected a whole number from 1 on, or 0 or "unlimited" for no limit')
    return value


def seconds_limit(value: Any) -> float:
    if value in ("unlimited", math.inf):
        return math.inf
    if type(value) not in {int, float} or not value >= 0:
        raise ValueError('expected a positive number of seconds, or 0 or "unlimited" for no limit')
    return float(value) or math.inf


def seconds(value: Any) -> float:
    if type(value) not in {int, float} or not 0 < value < math.inf:
        raise ValueError("expected a positive number of seconds")
    return float(value)


def not_yet(what: str) -> Callable[[Any], Any]:
    """For keys that a later version will know: any value is refused by name."""

    def check(value: Any) -> Any:
        if value is not None:
            raise ValueError(f"{what} is not in this version")
        return value

    return check


def without(*values: str) -> Callable[[Any], Any]:
    """For values that a later version will know: they are refused by name."""

    def check(value: Any) -> Any:
        if isinstance(value, str) and value in values:
            raise ValueError(f'"{value}" is not in this version')
        return value

    return check


def installed(engine: str) -> str:
    """An engine whose library is there; aiortc always is."""
    if engine == "libdatachannel" and importlib.util.find_spec(engine) is None:
        raise ValueError(
            '"libdatachannel" is not installed: it is the package libdatachannel-py, for Python 3.12 and later on Linux'
        )
    return engine


def matching(pattern: str, expectation: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def check(value: str) -> str:
        if not compiled.fullmatch(value):
            raise ValueError(f"expected {expectation}")
        return value

    return check


username = matching(
    r"[a-z0-9][a-z0-9-]{1,30}[a-z0-9]",
    "a user name: 3 to 32 of a-z, 0-9 and dashes, with no dash at either end",
)
fqn = matching(
    r"(?=[^@]{3,128}@)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)+"
    r"@[0-9]+\.[0-9]+\.[0-9]+(-[a-z0-9.-]+)?",
    "NAME@VERSION such as com.example.chat@1.0.0 (a name of two labels at least, a version of three numbers)",
)
uuid = matching(
    r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
    "a UUID such as 5f0c1b9e-7f3f-4a77-9a44-2f9d4fbd9c1d",
)
ice_url = matching(r"(stuns?|turns?):[^\s@]+", "a URL such as stun:HOST:PORT or turn:HOST:PORT")


def unlimited_only(what: str) -> Callable[[Any], float]:
    """For limits in seconds that a later version will know: only their absence can be said."""

    def check(value: Any) -> float:
        if seconds_limit(value) != math.inf:
            raise ValueError(f"{what} is not in this version")
        return math.inf

    return check


def absolute_path(value: Any) -> Path:
    if isinstance(value, str) and value and "\0" not in value:
        try:
            path = Path(value).expanduser()
        except RuntimeError as error:
            raise ValueError("no home directory is known") from error
        if path.is_absolute():
            return path
    raise ValueError("expected an absolute path, or one that begins with ~/")


def octal_mode(value: Any) -> int:
    if isinstance(value, str) and re.fullmatch(r"0?[0-7]{3}", value):
        return int(value, 8)
    raise ValueError('expected the mode as octal text, such as "0660"')


def label(value: str) -> str:
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        size = 0
    if not 1 <= size <= 255:
        raise ValueError("expected a label of 1 to 255 bytes of UTF-8")
    return value


def connection_name(value: str) -> str:
    if not 1 <= len(value) <= 255 or not value.isprintable():
        raise ValueError("expected a name of 1 to 255 printable characters")
    if re.fullmatch(r"conn-[0-9a-f]{16}", value):
        raise ValueError("expected a name that does not look like a connection id (conn- and 16 hex digits)")
    if value.startswith("service:"):
        raise ValueError('expected a name that does not begin with "service:", which names services')
    return value


def json_value(value: Any) -> Any:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError("expected a value that JSON can carry (no dates, no nan)") from error
    return value


def url(value: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", value):
        raise ValueError("expected a URL such as https://signalling.example.org")
    return value.rstrip("/")


def listen(value: str) -> str:
    host, _, port = value.rpartition(":")
    if not host or not re.fullmatch(r"\d{1,5}", port) or int(port) > 65535:
        raise ValueError('expected HOST:PORT such as "127.0.0.1:3000" or "[::1]:3000"')
    return value


def metrics_listen(value: str) -> str:
    """Only where no other machine comes: metrics name peers, and are served to whoever asks."""
    expected = 'expected "unix:/PATH" or a loopback address with a port such as "127.0.0.1:9464"'
    if value.startswith("unix:"):
        path = value[5:]
        if not path.startswith("/") or "\0" in path or path.endswith("/"):
            raise ValueError(expected)
        return value
    try:
        listen(value)
        address = ip_address(value.rpartition(":")[0].strip("[]"))
    except ValueError:
        raise ValueError(expected) from None
    if not address.is_loopback:
        raise ValueError(
            f"{expected}: {address} can be reached from outside; a proxy in front could ask for a password"
        )
    return value


def rendezvous_store(value: str) -> str:
    if value.startswith(("postgresql:", "postgres:")):
        raise ValueError("a postgresql: store is not in this version")
    if value not in {"sqlite", "memory"} and not re.fullmatch(r"sqlite:.+", value):
        raise ValueError('expected "sqlite" (a file in the state directory), "sqlite:PATH" or "memory"')
    return value


def listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def table_of(key: str) -> Callable[[Any], Any]:
    """A text in place of a table stands for the table's one necessary key."""
    return lambda value: {key: value} if isinstance(value, str) else value
