"""Receive files from one channel, or from all connections of a service: what `incoming` decides, done."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from rondevu_client.errors import Detached, MessageRejected, RequestRefused
from rondevud.ctl.files.folder import Folder
from rondevud.ctl.files.incoming import Incoming, News
from rondevud.ctl.files.progress import Display, Facts, format_size
from rondevud.ctl.files.protocol import CHUNK, OVERHEAD, Answer, NotAMessage, Request, pack, parse
from rondevud.ctl.files.sending import PASSING, RETRY_FIRST, RETRY_LAST, first_error
from rondevud.ctl.output import printable

if TYPE_CHECKING:
    from rondevu_client.channel import Channel
    from rondevu_client.client import Daemon
    from rondevu_client.inbox import Message
    from rondevu_client.stream import EventStream

CREDIT = 16
"""Messages ahead of what was written: with the largest that a daemon takes, 16 MiB each, 256 MiB of a hostile peer."""

SYNC_BYTES = 1024 * 1024
"""Bytes after which what was written is brought to the disk, acknowledged and told to the sender."""

IDLE = 1.0
"""Seconds without a message after which that is done with less, too."""

COMPLAINTS = 10
"""Messages that make no sense of which each is told; more are counted."""


class Enough(Exception):
    """As many files as were wanted have been received."""


class ReceivingFiles:
    """Takes files into `folder` until there are `count`, or without end."""

    def __init__(
        self, folder: Folder, label: str, display: Display, *, count: int | None, max_size: int | None
    ) -> None:
        self._folder = folder
        self.label = label
        self._display = display
        self._left = count
        self._max_size = max_size

    async def from_connection(self, daemon: Daemon, target: str) -> None:
        """Raises `Detached` when the channel ends, and what `Daemon.attach` raises; returns when there are enough."""
        with contextlib.suppress(Enough):
            await self._receive(daemon, target)

    async def from_service(self, daemon: Daemon, target: str) -> None:
        """From all connections that the service has and gets. Raises `RequestRefused`, `Detached`."""
        stream = await daemon.subscribe(target)
        try:
            async with asyncio.TaskGroup() as group:
                await _Visits(self, daemon, group).follow(stream, target)
        except BaseExceptionGroup as group:
            if group.subgroup(Enough) is None:
                raise first_error(group) from None
        finally:
            with contextlib.suppress(RequestRefused, TimeoutError):
                await stream.close()

    async def visit(self, daemon: Daemon, connection_id: str) -> None:
        """From one of them, until it ends. Raises `Enough`."""
        try:
            await self._receive(daemon, connection_id)
        except Detached as error:
            self._display.tell(f"{connection_id}: {error}")
        except RequestRefused as error:
            if error.code not in {"in_use", "unknown_target", "closed"}:
                raise
            self._display.tell(f"{connection_id}: {error}")

    async def _receive(self, daemon: Daemon, target: str) -> None:
        channel = await daemon.attach(target, self.label, auto_ack=False, credit=CREDIT)
        shelf = self._folder.shelf(channel.connection_id, self.label)
        chunk = max(1, min(CHUNK, channel.max_message - OVERHEAD))
        incoming = await asyncio.to_thread(Incoming, shelf, max_size=self._max_size, chunk=chunk)
        try:
            await _Reception(channel, incoming, self._display, self._count_down).run()
        finally:
            incoming.close()
            if channel.end_reason is None:
                with contextlib.suppress(RequestRefused, TimeoutError):
                    await channel.detach()

    def _count_down(self) -> bool:
        """One more has been received; whether that was the last one."""
        if self._left is None:
            return False
        self._left -= 1
        return self._left <= 0


class _Visits:
    """One task for each connection that sends something."""

    def __init__(self, receiving: ReceivingFiles, daemon: Daemon, group: asyncio.TaskGroup) -> None:
        self._receiving = receiving
        self._label = receiving.label
        self._daemon = daemon
        self._group = group
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._again: set[str] = set()

    async def follow(self, stream: EventStream, target: str) -> None:
        self._begin_all(stream)
        async for event in stream:
            data = event.data
            if event.name == "channel" and data.get("label") == self._label:
                self._begin(data["connection_id"])
            elif event.name == "overrun":
                fresh = await self._daemon.subscribe(target)
                self._begin_all(fresh)
                await fresh.close()
        raise Detached("closed")

    def _begin_all(self, stream: EventStream) -> None:
        for row in stream.connections:
            for channel in row["channels"]:
                if channel["label"] == self._label and (channel["state"] == "open" or channel["waiting"]):
                    self._begin(row["connection_id"])

    def _begin(self, connection_id: str) -> None:
        if connection_id in self._tasks:
            self._again.add(connection_id)
            return
        task = self._group.create_task(
            self._receiving.visit(self._daemon, connection_id), name=f"files of {connection_id}"
        )
        self._tasks[connection_id] = task
        task.add_done_callback(lambda _task: self._end(connection_id))

    def _end(self, connection_id: str) -> None:
        """It was offered while it was being given up: take it again."""
        task = self._tasks.pop(connection_id)
        if connection_id in self._again and not task.cancelled() and task.exception() is None:
            self._again.discard(connection_id)
            self._begin(connection_id)


class _Reception:
    """One channel, until it ends."""

    def __init__(self, channel: Channel, incoming: Incoming, display: Display, count_down: Callable[[], bool]) -> None:
        self._channel = channel
        self._incoming = incoming
        self._display = display
        self._count_down = count_down
        self._busy = asyncio.Lock()
        self._gap = asyncio.Event()
        self._last: Message | None = None
        self._senseless = 0

    async def run(self) -> None:
        """Raises `Detached` at the end, `Enough`."""
        self._channel.on("gap", lambda _gap: self._gap.set())
        asking = asyncio.create_task(self._ask_after_gaps(), name="files after gaps")
        try:
            await self._take_all()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    async def _take_all(self) -> None:
        while True:
            idle = False
            try:
                self._last = await self._channel.receive(IDLE if self._incoming.dirty else None)
            except TimeoutError:
                idle = True
            else:
                await self._take(self._last)
            if idle or not 0 < self._incoming.dirty < SYNC_BYTES:
                async with self._busy:
                    await self._sync()

    async def _take(self, message: Message) -> None:
        request = self._read(message.data)
        if request is None:
            return
        async with self._busy:
            await self._say(await asyncio.to_thread(self._incoming.take, request))

    async def _sync(self) -> None:
        """Everything taken so far is brought to the disk, told to the sender and acknowledged."""
        if self._incoming.dirty:
            await self._say(await asyncio.to_thread(self._incoming.sync))
        if self._last is not None:
            await self._last.ack()
        self._tell_news()

    async def _ask_after_gaps(self) -> None:
        """Messages were lost on the way, perhaps the last ones there were: nothing else would show it."""
        while True:
            await self._gap.wait()
            self._gap.clear()
            async with self._busy:
                await self._say(await asyncio.to_thread(self._incoming.ask))

    def _read(self, data: str | bytes) -> Request | None:
        try:
            message = parse(data)
            if not isinstance(message, Request):
                raise NotAMessage(
                    f"{type(message).__name__.lower()}: the other side receives files on this channel, too"
                )
        except NotAMessage as error:
            self._senseless += 1
            if self._senseless <= COMPLAINTS:
                more = "; more of them are not told" if self._senseless == COMPLAINTS else ""
                self._display.tell(
                    f"{self._channel.connection_id}: a message was passed over: {printable(str(error))}{more}"
                )
            return None
        return message

    async def _say(self, answers: list[Answer]) -> None:
        """Returns when the daemon has stored them. Raises `MessageRejected` for a reason that does not pass."""
        for answer in answers:
            pause = RETRY_FIRST
            while True:
                try:
                    await self._channel.send(pack(answer))
                    break
                except MessageRejected as error:
                    if error.code not in PASSING:
                        raise
                    self._display.tell(f"{self._channel.connection_id}: answered again in {pause:g} s: {error}")
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_LAST)

    def _tell_news(self) -> None:
        news, self._incoming.news = self._incoming.news, []
        for item in news:
            self._tell(item)

    def _tell(self, news: News) -> None:
        record = news.record
        key = self._channel.connection_id.encode() + record.id
        facts: Facts = {
            "connection_id": self._channel.connection_id,
            "label": self._channel.label,
            "name": record.final or record.name,
            "size": record.size,
            "sha256": record.sha256.hex(),
            "state": news.state,
            "received": news.received,
            "why": news.why,
        }
        if news.state == "receiving":
            self._display.show(key, facts)
            return
        name = printable(str(facts["name"]))
        why = f" ({news.why})" if news.why else ""
        line = f"{name}: {news.state}{why}, {format_size(record.size)}, from {self._channel.connection_id}"
        self._display.end(key, facts, line)
        if news.state == "done" and self._count_down():
            raise Enough
