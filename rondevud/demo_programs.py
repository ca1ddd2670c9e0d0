"""The programs of the demo: each a process of its own, each with a log that only it writes.

``python -m rondevud.demo_programs PROGRAM --socket PATH --log FILE --messages N``, PROGRAM being

- ``send``: sends the numbers 1 to N to the service, and ends when the other side has stored them all
- ``echo``: exposes the service, and answers each number with ``echo N``
- ``receive``: receives the echoes, and ends with the last one

All three can be killed at any moment and started again: what they did before stands in their logs. A message that comes
again is known by its id, and dropped. A log has one JSON object on each line, ``{"event", "number", …}``; events are
``accepted`` (our daemon stored it), ``received``, ``redelivered``, ``gap`` and ``acknowledged`` (the peer's stored it).
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from rondevu_client.channel import Channel
from rondevu_client.client import Daemon
from rondevu_client.inbox import Message

USER = "alice"
FQN = "demo.echo@1.0.0"
NAME = "to-alice"
"""Of the connection to the service."""
LABEL = "numbers"
PACE = 0.04
"""Seconds between two numbers."""
ACK_EVERY = 10
"""Messages between two acknowledgements, so that a program that is killed gets some again."""


class Log:
    """What a program did, over all its lives."""

    def __init__(self, path: Path) -> None:
        self.entries = read_log(path)
        # Unbuffered, and a line in one write: what was written when the process is killed is whole, and in the file.
        self._file = path.open("ab", buffering=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def write(self, event: str, number: int, **more: Any) -> None:
        entry = {"event": event, "number": number, **more}
        self.entries.append(entry)
        self._file.write(json.dumps(entry).encode() + b"\n")

    def count(self, event: str) -> int:
        return sum(entry["event"] == event for entry in self.entries)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The entries of a log; none when there is no file. A line that is being written is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    return [json.loads(line) for line in lines[:-1]]


class Receiver:
    """Takes each message once, whatever is delivered again."""

    def __init__(self, log: Log) -> None:
        self._log = log
        ids = [entry["id"] for entry in log.entries if entry["event"] == "received"]
        self._places: dict[str, int] = {message_id: place for place, message_id in enumerate(ids, 1)}
        self._unacknowledged = 0

    def __len__(self) -> int:
        return len(self._places)

    @staticmethod
    def number(message: Message) -> int:
        return int(str(message.data).removeprefix("echo "))

    def take(self, message: Message) -> int:
        """Write it down; answers its place among the different messages received, from 1 on."""
        number = self.number(message)
        if message.id in self._places:
            self._log.write("redelivered", number, id=message.id)
        else:
            self._places[message.id] = len(self._places) + 1
            self._log.write("received", number, id=message.id, attempt=message.attempt)
        return self._places[message.id]

    async def acknowledge(self, message: Message, *, last: bool) -> None:
        """Be done with `message` and all before it; in fact only at every `ACK_EVERY` and at the last one."""
        self._unacknowledged += 1
        if last or self._unacknowledged == ACK_EVERY:
            self._unacknowledged = 0
            await message.ack()


def report_gaps(channel: Channel, log: Log) -> None:
    channel.on("gap", lambda gap: log.write("gap", 0, count=gap.get("count"), reason=gap.get("reason")))


async def open_outbox(daemon: Daemon, target: str, name: bytes, log: Log) -> tuple[Channel, int]:
    """The sending half of the channel, and how many messages of this program are stored already.

    A producer with a name of its own goes on numbering where its last life ended: the daemon knows what it stored, and
    what the program was killed before it could write down.
    """
    request = {"target": target, "label": LABEL, "mode": "send", "producer": name, "takeover": True}
    answer = await daemon.call("attach", request)
    await daemon.call("detach", {"handle": answer["handle"]})
    stored = int(answer["last_seq"])
    for number in range(log.count("accepted") + 1, stored + 1):
        log.write("accepted", number)
    return await daemon.attach(target, LABEL, mode="send", producer=name, takeover=True), stored


async def send(daemon: Daemon, log: Log, messages: int) -> None:
    await daemon.connect(USER, FQN, name=NAME)
    channel, stored = await open_outbox(daemon, NAME, b"sender", log)
    for number in range(stored + 1, messages + 1):
        await channel.send(str(number))
        log.write("accepted", number)
        await asyncio.sleep(PACE)
    await channel.flush()
    log.write("acknowledged", messages)


async def echo(daemon: Daemon, log: Log, messages: int) -> None:
    service = await daemon.expose_service(USER, FQN, pool_size=2)
    connected: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    def take(connection_id: str) -> None:
        if not connected.done():
            connected.set_result(connection_id)

    service.on("connection", take)
    connection_id = await connected
    outbox, stored = await open_outbox(daemon, connection_id, b"echo", log)
    inbox = await daemon.attach(connection_id, LABEL, takeover=True, auto_ack=False)
    report_gaps(inbox, log)
    receiver = Receiver(log)
    while stored < messages:
        message = await anext(inbox)
        place = receiver.take(message)
        if place > stored:
            await outbox.send(f"echo {receiver.number(message)}")
            log.write("accepted", place)
            stored = place
        await receiver.acknowledge(message, last=stored == messages)
    await outbox.flush()
    log.write("acknowledged", messages)


async def receive(daemon: Daemon, log: Log, messages: int) -> None:
    await daemon.connect(USER, FQN, name=NAME)
    inbox = await daemon.attach(NAME, LABEL, takeover=True, auto_ack=False)
    report_gaps(inbox, log)
    receiver = Receiver(log)
    while len(receiver) < messages:
        message = await anext(inbox)
        receiver.take(message)
        await receiver.acknowledge(message, last=len(receiver) == messages)


PROGRAMS = {"send": send, "echo": echo, "receive": receive}


@dataclass
class Arguments(argparse.Namespace):
    program: str = ""
    socket: Path = Path()
    log: Path = Path()
    messages: int = 0


def read_arguments() -> Arguments:
    parser = argparse.ArgumentParser(prog="rondevud.demo_programs")
    parser.add_argument("program", choices=PROGRAMS)
    parser.add_argument("--socket", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--messages", type=int, required=True)
    return parser.parse_args(namespace=Arguments())


async def run(arguments: Arguments) -> None:
    task = asyncio.current_task()
    if task is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    with Log(arguments.log) as log:
        client = f"demo: {arguments.program} (pid {os.getpid()})"
        async with Daemon(arguments.socket, client=client) as daemon:
            await PROGRAMS[arguments.program](daemon, log, arguments.messages)


if __name__ == "__main__":
    with contextlib.suppress(asyncio.CancelledError, KeyboardInterrupt):
        asyncio.run(run(read_arguments()))
