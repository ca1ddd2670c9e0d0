"""Where one part of the measurement takes place: a directory and processes of its own, which end with it."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import sys
import tempfile
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from rondevu_client import RondevuClientError
from tests.acceptance.processes import Stage

_PATHS = ssl.get_default_verify_paths()

ENVIRONMENT = {"PYTHONUNBUFFERED": "", "SSL_CERT_FILE": _PATHS.openssl_cafile, "SSL_CERT_DIR": _PATHS.openssl_capath}
"""What undoes the settings with which tests start processes faster than users do."""

LOOK = 0.2
"""Seconds between looks at what is waited for."""


class Failed(Exception):
    """A part that could not be measured; the message says which, and what was waited for."""


@contextlib.asynccontextmanager
async def scene(directory: Path, what: str, within: float, *, fresh: bool = True) -> AsyncIterator[Stage]:
    """A stage with a signalling server, in a new directory below `directory`, for at most `within` seconds.

    Raises `Failed`, also when a process logged an error; the ends of the logs are printed before. `fresh` as of `Stage`.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="s", dir=directory) as path, contextlib.redirect_stdout(sys.stderr):
            async with Stage(Path(path), within, fresh=fresh) as stage:
                await stage.rendezvous.start()
                yield stage
    except TimeoutError as error:
        raise Failed(f"{what}: {str(error) or f'not done within {within:.0f} s{_place(error)}'}") from error
    except (AssertionError, RuntimeError, RondevuClientError, ExceptionGroup) as error:
        raise Failed(f"{what}: {'; '.join(_reasons(error))}") from error


def _place(error: BaseException) -> str:
    """Where the benchmark was when its time ended."""
    found, cause = "", error.__cause__ or error.__context__
    for frame in traceback.extract_tb(cause.__traceback__) if cause else ():
        if Path(frame.filename).parent == Path(__file__).parent and frame.filename != __file__:
            found = f", at {Path(frame.filename).name}:{frame.lineno}, {frame.line}"
    return found


def _reasons(error: Exception) -> list[str]:
    if isinstance(error, ExceptionGroup):
        return [reason for each in error.exceptions for reason in _reasons(each)]
    return [str(error) or repr(error)]


async def until(look: Callable[[], Awaitable[str]], description: str, within: float) -> None:
    """Wait until `look` finds nothing missing. Raises `AssertionError` with what is missing after `within` seconds."""
    missing = "everything"
    try:
        async with asyncio.timeout(within):
            while missing := await look():
                await asyncio.sleep(LOOK)
    except TimeoutError:
        raise AssertionError(f"not in {within:.0f} s: {description}; {missing}") from None
