"""Requests to a signalling server: time-outs, repetition, bounded answers, and one translation of what can go wrong.

Repetition: a request is tried at most three times within the call's time-out, with backoff and jitter, and not before the
server's ``Retry-After``. A request that surely was not carried out (no connection, 429, 503) may always be repeated; one
that may have been carried out (broken connection, other 5xx) only when its caller says that repeating is harmless.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import random
from collections import Counter
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final

from yarl import URL

from rondevud.errors import ConfigError, SignallingError, SignallingGarbled, SignallingUnreachable
from rondevud.signalling.base import Health
from rondevud.signalling.clock import ServerClock

if TYPE_CHECKING:
    import aiohttp

logger = logging.getLogger(__name__)

MAX_ANSWER: Final = 1024 * 1024
"""Bytes of an answer unless the caller expects more."""

TRIES: Final = 3
BACKOFF: Final = 0.3
"""Seconds before the second try at most; doubled before the third."""

KEEP_ALIVE: Final = 3.0
"""Seconds an idle connection is kept: less than the 5 s after which Node's HTTP server closes one, possibly just when a
request is on its way."""

MAX_CONNECTIONS: Final = 16
QUOTED: Final = 200
"""Characters of a server's text that go into a message."""

MAX_RETRY_AFTER: Final = 3600.0
"""Seconds that a server can ask for at most: it is asked again after an hour whatever it said."""


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer that arrived whole."""

    what: str
    """Method and URL, for messages."""
    status: int
    body: Any
    """The JSON value; None when the answer is not JSON."""
    text: str
    """The beginning of the answer, for messages."""
    retry_after: float | None
    repeated: bool
    """Whether an earlier try of this request may have been carried out."""

    @property
    def error(self) -> str | None:
        """The server's own error text, fit for a message; None when this is not an error of the protocol."""
        error = self.body.get("error") if isinstance(self.body, dict) else None
        return quoted(error) if isinstance(error, str) else None


class _Failed(Exception):
    """A try that brought no answer."""

    def __init__(self, message: str, *, arrived: bool) -> None:
        super().__init__(message)
        self.arrived = arrived
        """Whether the request may have reached the server."""


class HttpClient:
    """One server. Makes its session at the first request; a session given to it stays open in `close`."""

    def __init__(
        self,
        url: str,
        *,
        clock: ServerClock,
        session: aiohttp.ClientSession | None = None,
        timeout: float = 10.0,
        user_agent: str = "rondevud",
    ) -> None:
        """`timeout` is for a whole call, all tries included. Raises `ConfigError` for a URL that is not http(s)."""
        self._base = _check_url(url)
        self._clock = clock
        self._session = session
        self._owns_session = session is None
        self._timeout = timeout
        self._user_agent = user_agent
        self._closed = False
        self._tries: set[asyncio.Timeout] = set()
        """Of the requests under way: their time."""
        self._closing: set[asyncio.Task[None]] = set()
        """Sessions whose connections belong to a network that is no more."""
        self._changes = 0
        """How often the network has changed."""
        self.health = Health(clock.steady)
        self.counters: Counter[str] = Counter()
        """``retries``, tries that followed another one, and what others who share this client count; they only rise."""

    async def close(self) -> None:
        """Idempotent."""
        self._closed = True
        if self._owns_session and self._session is not None:
            session, self._session = self._session, None
            await session.close()
        if self._closing:
            await asyncio.wait(self._closing)

    def network_changed(self) -> None:
        """Connections may hang, being from an address that this machine has no more: use none of them any longer.

        What is under way on them counts as a try that failed.
        """
        self._changes += 1
        for current in self._tries:
            if not current.expired():
                current.reschedule(asyncio.get_running_loop().time())
        if self._owns_session and self._session is not None:
            session, self._session = self._session, None
            closing = asyncio.get_running_loop().create_task(session.close(), name="close signalling connections")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        authorization: str | None = None,
        harmless: bool = True,
        accept: Collection[int] = (),
        limit: int = MAX_ANSWER,
    ) -> Reply:
        """Send and answer with the reply, whatever 2xx or 4xx it is, or one of the statuses in `accept`.

        `harmless` says that repeating a request that may have been carried out does no harm. `path` is encoded already.
        Raises `SignallingUnreachable` and `SignallingGarbled` (too large, a redirection).
        """
        url = URL(self._base + path, encoded=True)
        what = f"{method} {url}"
        deadline = self._clock.steady() + self._timeout
        arrived = False
        for attempt in range(1, TRIES + 1):
            try:
                reply = await self._try(what, method, url, body, authorization, limit, deadline, repeated=arrived)
            except SignallingGarbled as garbage:
                self.health.failed(garbage)
                raise
            except _Failed as failure:
                arrived = arrived or failure.arrived
                error, repeatable = SignallingUnreachable(str(failure)), harmless or not failure.arrived
            else:
                if reply.status not in {429, *range(500, 600)} or reply.status in accept:
                    self.health.answered()
                    return reply
                arrived = arrived or reply.status not in {429, 503}
                error = unreachable(reply)
                repeatable = harmless or reply.status in {429, 503}
            pause = max(random.uniform(0.5, 1.0) * BACKOFF * 2 ** (attempt - 1), error.retry_after or 0.0)  # noqa: S311
            if not repeatable or attempt == TRIES or self._clock.steady() + pause >= deadline:
                self.health.failed(error)
                raise error
            logger.debug("%s; trying again in %.1f s", error, pause)
            self.counters["retries"] += 1
            await asyncio.sleep(pause)
        raise AssertionError("unreachable")

    async def _try(
        self,
        what: str,
        method: str,
        url: URL,
        body: Any,
        authorization: str | None,
        limit: int,
        deadline: float,
        *,
        repeated: bool,
    ) -> Reply:
        import aiohttp  # noqa: PLC0415

        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if authorization is not None:
            headers["Authorization"] = authorization
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body, ensure_ascii=True, separators=(",", ":")).encode()
        sent, changes = self._clock.steady(), self._changes
        try:
            async with (
                self._bounded(max(0.0, deadline - sent)),
                self._open_session().request(
                    method, url, data=data, headers=headers, allow_redirects=False
                ) as response,
            ):
                self._learn_date(response, sent)
                raw = await _read(response, limit, what)
        except (aiohttp.ClientConnectorError, aiohttp.ClientConnectionResetError) as error:
            arrived = not isinstance(error, aiohttp.ClientConnectorError)
            raise _Failed(f"{what}: {_reason(error)}", arrived=arrived) from error
        except TimeoutError as error:
            changed = self._changes != changes
            why = "the network changed" if changed else f"no answer within {self._timeout:g} s"
            raise _Failed(f"{what}: {why}", arrived=True) from error
        except aiohttp.ClientResponseError as error:
            raise SignallingGarbled(f"{what}: the answer is not HTTP: {quoted(error.message)}") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Failed(f"{what}: {_reason(error)}", arrived=True) from error
        if 300 <= response.status < 400:
            target = quoted(response.headers.get("Location", "elsewhere"))
            raise SignallingGarbled(f"{what}: redirects to {target}; configure the URL where the server really is")
        logger.debug("%s: %d", what, response.status)
        return Reply(
            what=what,
            status=response.status,
            body=_parse(raw),
            text=quoted(raw[: 4 * QUOTED].decode("utf-8", "replace")),
            retry_after=self._retry_after(response.headers.get("Retry-After")),
            repeated=repeated,
        )

    @contextlib.asynccontextmanager
    async def _bounded(self, seconds: float) -> AsyncIterator[None]:
        """As `asyncio.timeout`; `network_changed` ends it at once."""
        async with asyncio.timeout(seconds) as current:
            self._tries.add(current)
            try:
                yield
            finally:
                self._tries.discard(current)

    def _open_session(self) -> aiohttp.ClientSession:
        import aiohttp  # noqa: PLC0415

        if self._closed:
            raise SignallingUnreachable("the connection to the signalling server has been closed")
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS, keepalive_timeout=KEEP_ALIVE),
                timeout=aiohttp.ClientTimeout(total=None),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,  # nothing compressed was asked for, and little of it can become much
                headers={"User-Agent": self._user_agent},
            )
        return self._session

    def _learn_date(self, response: aiohttp.ClientResponse, sent: float) -> None:
        """A Date with an Age was written for somebody else, some time ago."""
        date = _parse_date(response.headers.get("Date"))
        if date is not None and "Age" not in response.headers:
            stamp = date.timestamp()
            self._clock.learn(stamp, stamp + 1.0, sent=sent, received=self._clock.steady())

    def _retry_after(self, value: str | None) -> float | None:
        """Seconds; the header holds a number of seconds or a date of the server."""
        if value is None:
            return None
        if value.isdecimal():
            return min(float(value[:12]), MAX_RETRY_AFTER)
        date = _parse_date(value)
        return None if date is None else min(max(0.0, date.timestamp() - self._clock.now()), MAX_RETRY_AFTER)


def _check_url(url: str) -> str:
    """The URL without a trailing slash. User and password are refused: they would end up in messages."""
    try:
        parsed = URL(url)
    except ValueError as error:
        raise ConfigError(f"signalling url {url!r}: {error}") from error
    if parsed.scheme not in {"http", "https"} or not parsed.host:
        raise ConfigError(f"signalling url {url!r}: expected http://HOST[:PORT] or https://HOST[:PORT]")
    if parsed.user is not None or parsed.password is not None:
        raise ConfigError("signalling url: a user name or password has no place in it")
    if parsed.query_string or parsed.fragment:
        raise ConfigError(f"signalling url {url!r}: expected no query and no fragment")
    return str(parsed).rstrip("/")


async def _read(response: aiohttp.ClientResponse, limit: int, what: str) -> bytes:
    chunks = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        chunks += chunk
        if len(chunks) > limit:
            response.close()
            raise SignallingGarbled(f"{what}: the answer is larger than {limit} bytes")
    return bytes(chunks)


def _parse(raw: bytes) -> Any:
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def _parse_date(value: str | None) -> datetime | None:
    if value is None:
        return None
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    return date if date.tzinfo is not None else None


def quoted(text: str) -> str:
    """The beginning of a foreign text on one line, without what no log, terminal or socket should be given."""
    text = text[: 4 * QUOTED]
    if not text.isprintable():
        text = "".join(character if character.isprintable() else " " for character in text)
    return " ".join(text.split())[:QUOTED]


def _reason(error: BaseException) -> str:
    import ssl  # noqa: PLC0415

    import aiohttp  # noqa: PLC0415

    if isinstance(error, aiohttp.ClientConnectorError):
        cause = error.os_error
        if isinstance(error, aiohttp.ClientSSLError) or isinstance(cause, ssl.SSLError):
            return f"no secure connection: {cause}"
        return f"no connection: {cause.strerror or cause}"
    return f"connection lost: {str(error) or type(error).__name__}"


def unreachable(reply: Reply) -> SignallingUnreachable:
    """The error for an answer that says: not now."""
    message = f"{reply.what}: {reply.status}: {reply.error or reply.text or 'no text'}"
    return SignallingUnreachable(message, retry_after=reply.retry_after)


def garbled(reply: Reply, problem: str) -> SignallingError:
    """The error for an answer that is not the protocol's."""
    return SignallingGarbled(f"{reply.what}: {reply.status}: {problem}")
