"""A program on a message broker: python -m tests.bench.broker JOB, a JSON map.

`kind` (see `KINDS`), `address`, `topic`, `size` in bytes and `send`, or else it receives. Sends with `AHEAD`
acknowledgements under way and acknowledges what it receives, as programs on a daemon do.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from typing import Any

import nats
import nats.errors
import uvloop
from nats.js.api import AckPolicy, ConsumerConfig, StorageType, StreamConfig
from paho.mqtt import client as mqtt

from tests.bench.app import HEAD, PATIENCE
from tests.bench.talk import Arrivals, Orders, Window, at_most, say

AHEAD = 512
"""Messages sent and not acknowledged."""

BATCH = 512
"""Messages that are fetched, and acknowledged, together."""

FEWEST = 2
"""Messages sent, however late a process comes to it: between two of them there is a time."""

FETCH = 0.5
"""Seconds for which a fetch waits for a first message."""


class Program:
    """What both kinds have: messages carry their number, and must come in order."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.address: str = job["address"]
        self.topic: str = job["topic"]
        self.pad = bytes(job["size"] - HEAD.size)
        self.sends: bool = job["send"]
        self.sent = 0
        self.arrivals = Arrivals()
        self.wrong = ""

    def message(self) -> bytes:
        self.sent += 1
        return HEAD.pack(self.sent, 0.0) + self.pad

    def take(self, data: bytes) -> None:
        number, _ = HEAD.unpack_from(data)
        if number != self.arrivals.messages + 1 and not self.wrong:
            self.wrong = f"message {number} after {self.arrivals.messages}"
        self.arrivals.note(len(data))

    async def until_arrived(self, count: int) -> None:
        """Raises `RuntimeError` when another message came than the next one."""
        while self.arrivals.messages < count or self.wrong:
            if self.wrong:
                raise RuntimeError(self.wrong)
            await asyncio.sleep(0.01)


class Mqtt(Program):
    """QoS 1, with a session that the broker keeps; the address is a Unix socket. The client has a thread of its own."""

    async def open(self) -> None:
        self._ready = threading.Event()
        self._room = threading.Semaphore(AHEAD)
        self._client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id=f"bench-{'sends' if self.sends else 'receives'}-{self.topic}",
            clean_session=False,
            transport="unix",
        )
        self._client.max_inflight_messages_set(AHEAD)
        self._client.on_connect = self._on_connect
        self._client.on_subscribe = lambda *_: self._ready.set()
        self._client.on_message = lambda _client, _data, message: self.take(message.payload)
        self._client.on_publish = lambda *_: self._room.release()
        self._client.connect(self.address)
        self._client.loop_start()
        async with at_most(PATIENCE, lambda: "connected and subscribed"):
            while not self._ready.is_set():
                await asyncio.sleep(0.01)

    def _on_connect(self, client: mqtt.Client, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            raise RuntimeError(f"the broker refused: {reason}")
        if self.sends:
            self._ready.set()
        else:
            client.subscribe(self.topic, qos=1)

    async def send_all(self, window: Window) -> None:
        await window.until_begin()
        await asyncio.to_thread(self._send_until, window.end)

    def _send_until(self, end: float) -> None:
        while time.monotonic() < end or self.sent < FEWEST:
            if self._room.acquire(timeout=PATIENCE):
                self._client.publish(self.topic, self.message(), qos=1)
        for number in range(AHEAD):
            if not self._room.acquire(timeout=PATIENCE):
                raise TimeoutError(f"not in {PATIENCE:.0f} s: all acknowledged; {AHEAD - number} are not")


class JetStream(Program):
    """A stream in files, and a durable consumer that is asked for messages; the address is a URL."""

    async def open(self) -> None:
        self._failed = ""
        self._connection = await nats.connect(self.address)
        self._stream = self._connection.jetstream(publish_async_max_pending=AHEAD)
        if self.sends:
            return
        await self._stream.add_stream(
            StreamConfig(name=self.topic, subjects=[f"{self.topic}.all"], storage=StorageType.FILE)
        )
        acknowledging = ConsumerConfig(ack_policy=AckPolicy.ALL, max_ack_pending=8 * BATCH)
        self._consumer = await self._stream.pull_subscribe(
            f"{self.topic}.all", durable=f"reader-{self.topic}", config=acknowledging
        )
        self._fetching = asyncio.create_task(self._fetch_forever(), name="fetch")

    async def _fetch_forever(self) -> None:
        try:
            while True:
                try:
                    messages = await self._consumer.fetch(BATCH, timeout=FETCH)
                except nats.errors.TimeoutError:
                    continue  # nobody has sent anything
                for message in messages:
                    self.take(message.data)
                await messages[-1].ack()
        except nats.errors.Error as error:
            self.wrong = f"fetching failed: {error!r}"

    async def send_all(self, window: Window) -> None:
        await window.until_begin()
        subject = f"{self.topic}.all"
        while time.monotonic() < window.end or self.sent < FEWEST:
            acknowledged = await self._stream.publish_async(subject, self.message(), wait_stall=PATIENCE)
            acknowledged.add_done_callback(self._note_failure)
        await self._stream.publish_async_completed()
        if self._failed:
            raise RuntimeError(self._failed)

    def _note_failure(self, acknowledged: asyncio.Future[Any]) -> None:
        if not acknowledged.cancelled() and (error := acknowledged.exception()) is not None:
            self._failed = f"a message was not stored: {error!r}"


KINDS: dict[str, type[Mqtt | JetStream]] = {"mosquitto": Mqtt, "nats": JetStream}


async def main(job: dict[str, Any]) -> None:
    orders = Orders()
    await orders.open()
    program = KINDS[job["kind"]](job)
    await program.open()
    say("ready")
    while True:
        await obey(await orders.take(), program)


async def obey(order: dict[str, Any], program: Mqtt | JetStream) -> None:
    if order["do"] == "run":
        window = program.arrivals.window = Window.of(order)
        if order["send"]:
            within = PATIENCE + window.end - time.monotonic()
            async with at_most(within, lambda: f"all acknowledged; {program.sent} sent"):
                await program.send_all(window)
        say("sent", counts=[program.sent])
    elif order["do"] == "arrived":
        (count,) = order["counts"]
        async with at_most(PATIENCE, lambda: f"{count} arrived; {program.arrivals.messages} have"):
            await program.until_arrived(count)
        say("arrived", streams=[program.arrivals.result()])
    else:
        raise ValueError(f"unknown order {order['do']!r}")


if __name__ == "__main__":
    uvloop.run(main(json.loads(sys.argv[1])))
