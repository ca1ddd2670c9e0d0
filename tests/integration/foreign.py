"""Peers that are no daemons: hand-made ones on aiortc and aiohttp alone, which behave as the seed's JavaScript clients do.

What they send, and what they leave out, follows recordings of the real clients in a browser:

* texts are signalled as they were *before* gathering, so they hold no candidates; version 0.9.0 never tells any as a
  service, 0.9.2 posts a batch and then one by one; a client posts none, or (`trickles`) each of its own;
* a service puts a data channel ``rondevu-service`` into every offer, polls answers on a fixed timer, is given the same ones
  each time and handles each once; a refresh of its TTL closes everything and publishes anew;
* a 0.9.0 service hands out the first data channel that the other side opens, whatever its label, and ignores all others; a
  0.9.2 service hands out its own, and ignores all that the other side opens;
* a client opens one data channel for each of its channels once the connection is up, and takes an incoming one only for a
  label that it has (0.9.2: for any);
* a client that is closed closes its data channels and leaves the connection to whoever ends the page (`leave`).

Nothing of the daemon is used here, so that the two cannot share a mistake.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import secrets
import time
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Self
from urllib.parse import quote

import aiohttp
from aiortc import RTCConfiguration, RTCDataChannel, RTCPeerConnection, RTCSessionDescription
from aiortc.sdp import candidate_from_sdp
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.integration.daemons import FQN, PATIENCE

SERVICE_LABEL = "rondevu-service"
QUEUE_SIZE = 1_000
"""Messages that a channel keeps while it is not open; beyond it the oldest go."""

INTERVAL = 0.1
"""Seconds between two polls of answers (the seed's default is 2) or candidates (1)."""


class Refused(Exception):
    """The signalling server said no. `error` is its text."""

    def __init__(self, status: int, error: str) -> None:
        super().__init__(f"{status} {error}")
        self.status = status
        self.error = error


class Api:
    """The REST API, for one peer."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url
        self.peer_id = ""
        self.secret = ""

    async def request(self, method: str, path: str, body: Any = None, *, open_to_all: bool = False) -> Any:
        """The answer's body. Raises `Refused`."""
        headers = {} if open_to_all else {"Authorization": f"Bearer {self.peer_id}:{self.secret}"}
        async with self._session.request(method, self._url + path, json=body, headers=headers) as answer:
            content = await answer.json(content_type=None)
            if not answer.ok:
                raise Refused(answer.status, content.get("error", ""))
            return content

    async def register(self) -> None:
        """Become another peer."""
        answer = await self.request("POST", "/register", {}, open_to_all=True)
        self.peer_id, self.secret = answer["peerId"], answer["secret"]

    async def find(self, username: str, fqn: str) -> str:
        path = f"/index/{quote(username)}/query"
        return (await self.request("POST", path, {"serviceFqn": fqn}, open_to_all=True))["uuid"]

    async def discover(self, uuid: str) -> dict[str, Any]:
        return await self.request("GET", f"/services/{uuid}", open_to_all=True)

    async def answer(self, offer_id: str, sdp: str) -> None:
        """The seed sends its bearer secret as the offer's secret, too."""
        await self.request("POST", f"/offers/{offer_id}/answer", {"sdp": sdp, "secret": self.secret})

    async def add_candidates(self, offer_id: str, candidates: list[dict[str, Any]]) -> None:
        await self.request("POST", f"/offers/{offer_id}/ice-candidates", {"candidates": candidates})

    async def candidates(self, offer_id: str, since: int) -> list[dict[str, Any]]:
        return (await self.request("GET", f"/offers/{offer_id}/ice-candidates?since={since}"))["candidates"]


# --- WebRTC as a browser does it -------------------------------------------------------------------------------------


class Utf8Label(str):
    """aiortc writes the length of a label in characters where the wire has bytes; a browser does not."""

    __slots__ = ()

    def __len__(self) -> int:
        return len(self.encode())


def new_peer_connection() -> RTCPeerConnection:
    return RTCPeerConnection(RTCConfiguration(iceServers=[]))


def value_of(sdp: str, name: str, beginning: str = "") -> str:
    """The first value of attribute `name` that begins so."""
    start = f"a={name}:{beginning}"
    return next(line.removeprefix(f"a={name}:").strip() for line in sdp.splitlines() if line.startswith(start))


def browser_sdp(ufrag: str, password: str, fingerprint: str, setup: str) -> str:
    """A description as Chromium writes it before it has gathered: no candidates, and no end of them."""
    lines = [
        "v=0",
        f"o=- {secrets.randbits(62)} 2 IN IP4 127.0.0.1",
        "s=-",
        "t=0 0",
        "a=group:BUNDLE 0",
        "a=extmap-allow-mixed",
        "a=msid-semantic: WMS",
        "m=application 9 UDP/DTLS/SCTP webrtc-datachannel",
        "c=IN IP4 0.0.0.0",
        f"a=ice-ufrag:{ufrag}",
        f"a=ice-pwd:{password}",
        "a=ice-options:trickle",
        f"a=fingerprint:{fingerprint}",
        f"a=setup:{setup}",
        "a=mid:0",
        "a=sctp-port:5000",
        "a=max-message-size:262144",
    ]
    return "\r\n".join(lines) + "\r\n"


def signalled(description: RTCSessionDescription) -> str:
    """What a browser would signal for this description."""
    sdp = description.sdp
    fingerprint = value_of(sdp, "fingerprint", "sha-256 ")
    return browser_sdp(value_of(sdp, "ice-ufrag"), value_of(sdp, "ice-pwd"), fingerprint, value_of(sdp, "setup"))


def made_up_answer() -> str:
    """A valid answer of nobody: whoever takes it waits in vain."""
    fingerprint = "sha-256 " + ":".join(f"{byte:02X}" for byte in secrets.token_bytes(32))
    return browser_sdp(secrets.token_hex(2), secrets.token_hex(12), fingerprint, "active")


async def take_remote(pc: RTCPeerConnection, sdp: str, kind: str) -> None:
    """A browser goes on taking candidates whatever the text says about their end."""
    text = sdp.replace("a=end-of-candidates\r\n", "")
    await pc.setRemoteDescription(RTCSessionDescription(text, kind))


def candidates_of(pc: RTCPeerConnection) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """What a browser trickles, as ``RTCIceCandidate.toJSON()``: UDP candidates first, then those for TCP."""
    sdp = pc.localDescription.sdp
    ufrag = value_of(sdp, "ice-ufrag")
    found = [line.removeprefix("a=").strip() for line in sdp.splitlines() if line.startswith("a=candidate:")]
    addresses = dict.fromkeys(line.split()[4] for line in found)
    tcp = [
        f"candidate:{number} 1 tcp 1518214911 {address} 9 typ host tcptype active"
        for number, address in enumerate(addresses, 1)
    ]
    return [_as_json(line, ufrag) for line in found], [_as_json(line, ufrag) for line in tcp]


def _as_json(candidate: str, ufrag: str) -> dict[str, Any]:
    text = f"{candidate} generation 0 ufrag {ufrag} network-id 1"
    return {"candidate": text, "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": ufrag}


async def add_candidate(pc: RTCPeerConnection, entry: Any) -> None:
    """One that cannot be added is skipped."""
    text = entry.get("candidate") if isinstance(entry, dict) else None
    if not text:
        return
    with contextlib.suppress(Exception):
        candidate = candidate_from_sdp(text.removeprefix("candidate:"))
        candidate.sdpMid = "0"
        await pc.addIceCandidate(candidate)


def mute(pc: RTCPeerConnection) -> Callable[[], None]:
    """Nothing leaves its sockets any more, and no end of it knows. Answers what ends the silence."""

    async def swallow(*_arguments: Any) -> None:
        pass

    protocols = list(pc.sctp.transport.transport._connection._protocols)
    for protocol in protocols:
        protocol.send_data = swallow
        protocol.send_stun = lambda *_arguments: None

    def unmute() -> None:
        for protocol in protocols:
            del protocol.send_data, protocol.send_stun

    return unmute


async def end(pc: RTCPeerConnection) -> None:
    """Close it, with the tasks that aiortc leaves behind one that has not connected yet. Cannot be cancelled half-way."""
    await asyncio.shield(asyncio.ensure_future(_end(pc)))


async def _end(pc: RTCPeerConnection) -> None:
    await pc.close()
    if pc.sctp is None:
        return
    left = [task for task in asyncio.all_tasks() if _runs_for(task, pc.sctp.transport.transport)]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


def _runs_for(task: asyncio.Task[Any], owner: object) -> bool:
    frame = getattr(task.get_coro(), "cr_frame", None)
    return frame is not None and frame.f_locals.get("self") is owner


class ForeignChannel:
    """A durable channel of the seed: messages wait while no data channel is open, and are delivered as they are."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.data_channel: RTCDataChannel | None = None
        """The one attached last; what comes on an older one is lost."""
        self._received: asyncio.Queue[str | bytes] = asyncio.Queue()
        self._queue: deque[str | bytes] = deque(maxlen=QUEUE_SIZE)
        self._opened = asyncio.Event()
        self._closed = asyncio.Event()

    def attach(self, data_channel: RTCDataChannel) -> None:
        self.data_channel = data_channel
        self._closed.clear()

        @data_channel.on("message")
        def on_message(message: str | bytes) -> None:
            if self.data_channel is data_channel:
                self._received.put_nowait(message)

        @data_channel.on("open")
        def on_open() -> None:
            if self.data_channel is data_channel:
                self._opened.set()
                self._flush()

        @data_channel.on("close")
        def on_close() -> None:
            if self.data_channel is data_channel:
                self._opened.clear()
                self._closed.set()

        if data_channel.readyState == "open":
            on_open()

    @property
    def is_open(self) -> bool:
        return self.data_channel is not None and self.data_channel.readyState == "open"

    async def opened(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._opened.wait()

    async def closed(self) -> None:
        """Wait until the data channel in use is closed, by whichever side."""
        async with asyncio.timeout(PATIENCE):
            await self._closed.wait()

    def send(self, message: str | bytes) -> None:
        self._queue.append(message)
        if self.is_open:
            self._flush()

    async def receive(self) -> str | bytes:
        """The next message that came on the attached data channel."""
        async with asyncio.timeout(PATIENCE):
            return await self._received.get()

    @property
    def unread(self) -> int:
        """Messages received and not yet asked for."""
        return self._received.qsize()

    def close(self) -> None:
        if self.data_channel is not None:
            self.data_channel.close()

    def _flush(self) -> None:
        assert self.data_channel is not None
        while self._queue:
            self.data_channel.send(self._queue.popleft())


class Arrivals:
    """The data channels that the other side opened, each with everything that came on it, whoever else listens."""

    def __init__(self) -> None:
        self.labels: list[str] = []
        self._channels: asyncio.Queue[ForeignChannel] = asyncio.Queue()

    def add(self, data_channel: RTCDataChannel) -> None:
        """To be called from the event: aiortc drops what nobody listens to, where a browser waits for the handler."""
        channel = ForeignChannel(data_channel.label)
        channel.attach(data_channel)
        self.labels.append(channel.label)
        self._channels.put_nowait(channel)

    async def next(self) -> ForeignChannel:
        async with asyncio.timeout(PATIENCE):
            return await self._channels.get()


# --- the connecting side ---------------------------------------------------------------------------------------------


class ForeignClient:
    """The seed's DurableConnection; made by `Foreigners.client`."""

    def __init__(
        self,
        api: Api,
        target: str,
        *,
        version: str = "0.9.0",
        trickles: bool = False,
        max_attempts: int = 10,
        timeout: float = PATIENCE,
    ) -> None:
        """`target` is USER/FQN or a UUID. `trickles` posts the client's own candidates, one by one."""
        self.api = api
        self.channels: dict[str, ForeignChannel] = {}
        self.answered: list[str] = []
        """The offers answered so far."""
        self.failures: list[Exception] = []
        self.pc: RTCPeerConnection | None = None
        self._target = target
        self._creates_incoming = version != "0.9.0"
        self._trickles = trickles
        self._max_attempts = max_attempts
        self._timeout = timeout
        self._arrivals = Arrivals()
        self._connected = asyncio.Event()
        self._left = False
        self._tasks = Tasks()

    def create_channel(self, label: str, **options: Any) -> ForeignChannel:
        """`options` are aiortc's; as in the seed they hold until the first reconnection, and only while connected."""
        channel = self.channels[label] = ForeignChannel(label)
        if self._connected.is_set():
            self.open_data_channel(channel, **options)
        return channel

    def open_data_channel(self, channel: ForeignChannel, **options: Any) -> RTCDataChannel:
        """Open one (or another one) for `channel` and attach it."""
        assert self.pc is not None
        data_channel = self.pc.createDataChannel(Utf8Label(channel.label), **options)
        channel.attach(data_channel)
        return data_channel

    async def connect(self) -> None:
        """Dial. When that fails, this raises, and nevertheless goes on trying behind the caller's back."""
        try:
            await self._dial()
        except Exception:
            self._tasks.start(self._reconnect())
            raise

    async def connected(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._connected.wait()

    async def next_incoming(self, label: str) -> ForeignChannel:
        """The next data channel of that label that the other side opens; others are passed over."""
        while (channel := await self._arrivals.next()).label != label:
            pass
        return channel

    async def reconnect(self, *, as_another: bool = False) -> None:
        """Give the connection up and dial again, with the same credentials or (a page loaded anew) as another peer."""
        pc, self.pc = self.pc, None
        self._connected.clear()
        if pc is not None:
            await end(pc)
        if as_another:
            await self.api.register()
        await self._dial()

    async def vanish(self) -> RTCPeerConnection:
        """The page is gone without a word, and does not come back by itself; its connection, which says nothing more."""
        pc, self.pc = self.pc, None
        assert pc is not None
        self._connected.clear()
        mute(pc)
        await end(pc)
        return pc

    def close(self) -> None:
        """Close the data channels, and nothing else."""
        self._left = True
        for channel in self.channels.values():
            channel.close()

    async def leave(self) -> None:
        """End the page. Idempotent."""
        self._left = True
        await self._tasks.end()
        pc, self.pc = self.pc, None
        if pc is not None:
            await end(pc)

    async def _dial(self) -> None:
        offer = await self._look_up()
        pc = new_peer_connection()
        try:
            await self._answer(pc, offer)
            async with asyncio.timeout(self._timeout):
                await self._poll_candidates(pc, offer["offerId"])
        except BaseException:
            await end(pc)
            raise
        self._use(pc)

    async def _look_up(self) -> dict[str, Any]:
        username, _, fqn = self._target.partition("/")
        uuid = await self.api.find(username, fqn) if fqn else self._target
        return await self.api.discover(uuid)

    async def _answer(self, pc: RTCPeerConnection, offer: dict[str, Any]) -> None:
        """The answer goes out first, and only then is it set: gathering begins behind it."""
        pc.on("datachannel", self._accept)
        await take_remote(pc, offer["sdp"], "offer")
        answer = await pc.createAnswer()
        await self.api.answer(offer["offerId"], signalled(answer))
        self.answered.append(offer["offerId"])
        await pc.setLocalDescription(answer)
        if self._trickles:
            for candidate in candidates_of(pc)[0]:
                await self.api.add_candidates(offer["offerId"], [candidate])

    async def _poll_candidates(self, pc: RTCPeerConnection, offer_id: str) -> None:
        since = 0
        changed = asyncio.Event()
        pc.on("connectionstatechange", changed.set)
        while pc.connectionState != "connected":
            changed.clear()
            if pc.connectionState in {"failed", "closed"}:
                raise ConnectionError(f"the connection is {pc.connectionState}")
            for entry in await self.api.candidates(offer_id, since):
                since = entry["createdAt"]
                await add_candidate(pc, entry["candidate"])
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(changed.wait(), INTERVAL)

    def _use(self, pc: RTCPeerConnection) -> None:
        self.pc = pc
        pc.on("connectionstatechange", lambda: self._changed(pc))
        self._connected.set()
        for channel in self.channels.values():
            self.open_data_channel(channel)
        self._changed(pc)

    def _accept(self, data_channel: RTCDataChannel) -> None:
        self._arrivals.add(data_channel)
        if self._creates_incoming and data_channel.label not in self.channels:
            self.channels[data_channel.label] = ForeignChannel(data_channel.label)
        if data_channel.label in self.channels:
            self.channels[data_channel.label].attach(data_channel)

    def _changed(self, pc: RTCPeerConnection) -> None:
        """A loss shows in the connection's state only."""
        if pc is self.pc and pc.connectionState in {"failed", "closed"} and not self._left:
            self._connected.clear()
            self._tasks.start(self._reconnect())

    async def _reconnect(self) -> None:
        for _ in range(self._max_attempts):
            await asyncio.sleep(INTERVAL)
            if self._left:
                return
            try:
                await self._dial()
            except (Refused, ConnectionError, TimeoutError) as error:
                self.failures.append(error)
            else:
                return


# --- the service -----------------------------------------------------------------------------------------------------


class PoolOffer:
    """An offer at the server, and the connection that waits for its answer."""

    def __init__(self) -> None:
        self.pc = new_peer_connection()
        self.own = self.pc.createDataChannel(SERVICE_LABEL)
        self.offer_id = ""
        self.sdp = ""
        self.arrivals = Arrivals()
        self.pc.on("datachannel", self.arrivals.add)

    async def create(self) -> Self:
        offer = await self.pc.createOffer()
        self.sdp = signalled(offer)
        await self.pc.setLocalDescription(offer)
        return self


class ForeignService:
    """The seed's DurableService; made and started by `Foreigners.service`."""

    def __init__(
        self,
        api: Api,
        username: str,
        fqn: str,
        *,
        version: str = "0.9.0",
        pool_size: int = 1,
        ttl: float | None = None,
        channel_timeout: float = PATIENCE,
    ) -> None:
        """`channel_timeout`: seconds that an answered offer has until a data channel opens."""
        self.api = api
        self.target = f"{username}/{fqn}"
        self.uuid = ""
        self.polling = asyncio.Event()
        """Cleared to have it pause."""
        self.polling.set()
        self.live: list[PoolOffer] = []
        self.handled: list[str] = []
        """The offers whose answers were taken."""
        self._username, self._fqn = username, fqn
        self._key = Ed25519PrivateKey.generate()
        self._posts_candidates = self._hands_out_own = version != "0.9.0"
        self._pool_size = pool_size
        self._ttl = ttl
        self._channel_timeout = channel_timeout
        self._service_id = ""
        self._pool: dict[str, PoolOffer] = {}
        self._accepted: asyncio.Queue[ForeignChannel] = asyncio.Queue()
        self._failed: asyncio.Queue[str] = asyncio.Queue()
        self._tasks = Tasks()

    async def start(self) -> None:
        await self.api.register()
        await self._claim()
        await self._publish()
        await self._add_offers(self._pool_size - 1)
        self._tasks.start(self._poll_loop())

    async def stop(self) -> None:
        """Close everything and withdraw; the last request mostly fails, because the service went with its first offer."""
        await self._tasks.end()
        pool, self._pool = self._pool, {}
        live, self.live = self.live, []
        for offer in pool.values():
            await end(offer.pc)
            with contextlib.suppress(Refused):
                await self.api.request("DELETE", f"/offers/{offer.offer_id}")
        for offer in live:
            await end(offer.pc)
        with contextlib.suppress(Refused):
            await self.api.request("DELETE", f"/services/{self._service_id}", {"username": self._username})

    async def refresh(self) -> None:
        """Close every live connection and publish anew: at the seed's server with another UUID."""
        await self.stop()
        await self.start()

    async def vanish(self) -> None:
        """The page is gone without a word; its offers stay at the server."""
        await self._tasks.end()
        for offer in (*self._pool.values(), *self.live):
            mute(offer.pc)
            await end(offer.pc)
        self._pool, self.live = {}, []

    async def next_channel(self) -> ForeignChannel:
        """The channel that the application gets for the next connection."""
        async with asyncio.timeout(PATIENCE):
            return await self._accepted.get()

    async def next_failure(self) -> str:
        """The next offer that was answered and came to nothing."""
        async with asyncio.timeout(PATIENCE):
            return await self._failed.get()

    async def _claim(self) -> None:
        key = base64.b64encode(self._key.public_key().public_bytes_raw()).decode()
        body = {"username": self._username, "publicKey": key, **self._sign("claim")}
        await self.api.request("POST", "/usernames/claim", body, open_to_all=True)

    def _sign(self, verb: str, *words: str) -> dict[str, str]:
        message = ":".join([verb, self._username, *words, str(int(time.time() * 1000))])
        return {"message": message, "signature": base64.b64encode(self._key.sign(message.encode())).decode()}

    def _lasting(self) -> dict[str, int]:
        return {} if self._ttl is None else {"ttl": int(self._ttl * 1000)}

    async def _publish(self) -> None:
        offer = await PoolOffer().create()
        body = {"username": self._username, "serviceFqn": self._fqn, "sdp": offer.sdp, "isPublic": False}
        answer = await self.api.request(
            "POST", "/services", {**body, **self._lasting(), **self._sign("publish", self._fqn)}
        )
        self.uuid, self._service_id = answer["uuid"], answer["serviceId"]
        await self._pool_in(offer, answer["offerId"])

    async def _add_offers(self, missing: int) -> None:
        """At most ten in one request, as the seed does."""
        count = min(missing, 10)
        if count <= 0:
            return
        offers = [await PoolOffer().create() for _ in range(count)]
        entries = [{"sdp": offer.sdp, "topics": [], **self._lasting()} for offer in offers]
        answer = await self.api.request("POST", "/offers", {"offers": entries})
        for offer, entry in zip(offers, answer["offers"], strict=True):
            await self._pool_in(offer, entry["id"])

    async def _pool_in(self, offer: PoolOffer, offer_id: str) -> None:
        offer.offer_id = offer_id
        self._pool[offer_id] = offer
        if self._posts_candidates:
            at_once, later = candidates_of(offer.pc)
            await self.api.add_candidates(offer_id, at_once)
            for candidate in later:
                await self.api.add_candidates(offer_id, [candidate])

    async def _poll_loop(self) -> None:
        while True:
            await self.polling.wait()
            for answer in (await self.api.request("GET", "/offers/answers"))["answers"]:
                offer = self._pool.pop(answer["offerId"], None)
                if offer is not None:
                    self.handled.append(offer.offer_id)
                    self._tasks.start(self._take_answer(offer, answer["sdp"]))
            await self._add_offers(self._pool_size - len(self._pool))
            await asyncio.sleep(INTERVAL)

    async def _take_answer(self, offer: PoolOffer, sdp: str) -> None:
        self.live.append(offer)
        try:
            await take_remote(offer.pc, sdp, "answer")
            async with asyncio.timeout(self._channel_timeout):
                channel = await self._choose(offer)
        except Exception:  # noqa: BLE001 - whatever is wrong with an answer is the end of it
            await end(offer.pc)
            self.live.remove(offer)
            self._failed.put_nowait(offer.offer_id)
        else:
            self._accepted.put_nowait(channel)

    async def _choose(self, offer: PoolOffer) -> ForeignChannel:
        """The channel for the application."""
        if not self._hands_out_own:
            return await offer.arrivals.next()
        channel = ForeignChannel(SERVICE_LABEL)
        channel.attach(offer.own)
        await channel.opened()
        return channel


# --- all of them -----------------------------------------------------------------------------------------------------


class Tasks:
    """The tasks of one peer."""

    _numbers = itertools.count(1)

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work, name=f"foreign-{next(self._numbers)}")
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def end(self) -> None:
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)


class Foreigners:
    """All foreign peers of a test, put away together."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        self._session = await self._stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(PATIENCE))
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def api(self) -> Api:
        """The API for a peer that is not registered yet."""
        return Api(self._session, self._url)

    async def client(self, target: str = f"alice/{FQN}", **options: Any) -> ForeignClient:
        """A client, registered and not connected."""
        client = ForeignClient(self.api(), target, **options)
        self._stack.push_async_callback(client.leave)
        await client.api.register()
        return client

    async def service(self, username: str = "bob", fqn: str = FQN, **options: Any) -> ForeignService:
        """A service, published."""
        service = ForeignService(self.api(), username, fqn, **options)
        self._stack.push_async_callback(service.stop)
        await service.start()
        return service

    async def consume_offer(self, uuid: str) -> str:
        """Somebody else answers the offer that is handed out now, and is never heard of again. The offer's id."""
        offer_id = (await self.api().discover(uuid))["offerId"]
        await self.answer_in_vain(offer_id)
        return offer_id

    async def answer_in_vain(self, offer_id: str) -> None:
        """Somebody answers, and is never heard of again."""
        thief = self.api()
        await thief.register()
        await thief.answer(offer_id, made_up_answer())
