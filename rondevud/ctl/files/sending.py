"""Send files through one channel: what `outgoing` decides, done."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rondevu_client.errors import Detached, MessageRejected, RequestRefused, RondevuClientError
from rondevud.ctl.files.outgoing import Outgoing, Read, State
from rondevud.ctl.files.progress import Display, Facts, format_size
from rondevud.ctl.files.protocol import (
    CHUNK,
    HASH,
    OVERHEAD,
    RESUMABLE,
    WINDOW,
    Cancel,
    Lost,
    Message,
    NotAMessage,
    Offer,
    Request,
    pack,
    parse,
    transfer_id,
)
from rondevud.ctl.files.source import Source, SourceChanged
from rondevud.ctl.output import printable

if TYPE_CHECKING:
    from rondevu_client.channel import Channel
    from rondevu_client.client import Daemon

AT_ONCE = 4
"""Files under way at once: many small ones would otherwise wait for one answer after another."""

PASSING = {"queue_full", "store_full", "disk_full", "store_failed", "window"}
"""Codes of rejected messages after which trying again makes sense."""

RETRY_FIRST, RETRY_LAST = 1.0, 30.0
"""Seconds until something that was rejected is tried again; doubles."""

BUSY_PAUSE = 1.0
"""Seconds between looks whether a channel that another program has is free."""

SPEAK_AFTER = 5.0
"""Seconds after which it is said that nobody answers."""

ANSWERS_REMEMBERED = 256


class SendingFiles:
    """Sends `paths` through `channel`, which receives exclusively."""

    def __init__(self, channel: Channel, display: Display, *, timeout: float | None) -> None:
        """`timeout` is in seconds without progress of any file; None: without end."""
        self._channel = channel
        self._display = display
        self._timeout = timeout
        self._run = os.urandom(8)
        self._files: dict[bytes, _SendingFile] = {}
        self._deadline: asyncio.Timeout | None = None
        self._impossible = 0

    async def run(self, paths: Sequence[Path]) -> bool:
        """Send all of them; whether all are done.

        Raises `TimeoutError` without progress, and what the client library raises.
        """
        places = asyncio.Semaphore(AT_ONCE)
        window = WINDOW // min(AT_ONCE, len(paths))
        self._channel.on("gap", lambda _data: self._offer_all_again())
        try:
            async with asyncio.timeout(self._timeout) as self._deadline, asyncio.TaskGroup() as group:
                hearing = group.create_task(self._hear(), name="answers")
                waiting = group.create_task(self._speak_of_silence(), name="silence")
                async with asyncio.TaskGroup() as sending:
                    tasks = [
                        sending.create_task(self._send(path, places, window), name=f"send {path}") for path in paths
                    ]
                hearing.cancel()
                waiting.cancel()
        except TimeoutError:
            raise TimeoutError(f"no progress in {self._timeout:g} s; sending again goes on from there") from None
        except BaseExceptionGroup as group_error:
            raise first_error(group_error) from None
        return all(task.result() for task in tasks)

    # --- for the files -----------------------------------------------------------------------------------------

    def note_progress(self) -> None:
        if self._deadline is not None and self._timeout is not None:
            self._deadline.reschedule(asyncio.get_running_loop().time() + self._timeout)

    async def say(self, message: Request) -> None:
        """Returns when the daemon has stored it. Raises what `Channel.send` raises."""
        await self._channel.send(pack(message))

    def check_peer(self) -> None:
        if self._channel.acknowledges is False:
            raise RequestRefused("bad_target", "the peer is no daemon: files need a channel that acknowledges")

    def chunk(self) -> int:
        return max(1, min(CHUNK, self._channel.max_message - OVERHEAD))

    # --- inside ------------------------------------------------------------------------------------------------

    async def _send(self, path: Path, places: asyncio.Semaphore, window: int) -> bool:
        async with places:
            file = _SendingFile(self, self._display, path, self._run)
            try:
                with await asyncio.to_thread(Source, path) as source:
                    return await self._send_source(file, source, window)
            except (OSError, SourceChanged) as error:
                text = f"{error.strerror}: {path}" if isinstance(error, OSError) else str(error)
                file.fail("changed" if isinstance(error, SourceChanged) else "failed", text)
                return False
            finally:
                self._files.pop(file.id, None)

    async def _send_source(self, file: _SendingFile, source: Source, window: int) -> bool:
        await file.prepare(source)
        if file.id in self._files:
            file.fail("failed", "the same file was given twice")
            file.id = b""
            return False
        self._files[file.id] = file
        return await file.run(source, window)

    async def _hear(self) -> None:
        heard: deque[str] = deque(maxlen=ANSWERS_REMEMBERED)
        async for message in self._channel:
            if message.id in heard:
                continue
            heard.append(message.id)
            try:
                self._take(parse(message.data))
            except NotAMessage as error:
                self._impossible += 1
                if self._impossible == 1:
                    self._display.tell(f"what came is no answer about a file ({error}); is the label right?")
        raise Detached(self._channel.end_reason or "closed")

    def _take(self, answer: Message) -> None:
        if isinstance(answer, Request):
            raise NotAMessage(f"{type(answer).__name__.lower()}: the other side sends files on this channel, too")
        if isinstance(answer, Lost):
            self._offer_all_again()
            return
        file = self._files.get(answer.id)
        if file is not None:
            file.take(answer)

    def _offer_all_again(self) -> None:
        for file in self._files.values():
            file.offer_again()

    async def _speak_of_silence(self) -> None:
        await asyncio.sleep(SPEAK_AFTER)
        if not any(file.answered for file in self._files.values()):
            label = self._channel.label
            self._display.tell(
                f"nobody answers so far; there it needs `rondevuctl receive-files TARGET DIR --label {label}`"
            )


class _SendingFile:
    """One of them."""

    def __init__(self, sending: SendingFiles, display: Display, path: Path, run: bytes) -> None:
        self._sending = sending
        self._display = display
        self._path = path
        self._run = run
        self._transfer: Outgoing | None = None
        self._changed = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()
        self._rejected: Exception | None = None
        self._facts: Facts = {
            "file": str(path), "name": path.name, "size": None, "sha256": None, "state": "reading",
            "received": 0, "resumed_at": None, "received_as": None, "why": None,
        }  # fmt: skip
        self.id = b""
        self.answered = False

    async def prepare(self, source: Source) -> None:
        """Read it once, for its hash."""
        self._facts["size"] = source.size
        self._display.show(self._path.name.encode(errors="replace"), self._facts)
        digest = await asyncio.to_thread(source.sha256)
        self._facts["sha256"] = digest.hex()
        name = self._path.name.encode(errors="replace").decode()
        self.id = transfer_id(name, source.size, digest)
        self._offer = Offer(self.id, self._run, name, source.size, digest)

    async def run(self, source: Source, window: int) -> bool:
        """Until the receiver has spoken its last word. Raises `SourceChanged`, `OSError`, and the client library's."""
        transfer = await self._transmit(source, window)
        if transfer.refusal is not None and transfer.refusal.why == HASH:
            # The bytes that were there from another time may be damaged: once more, from the beginning.
            await asyncio.to_thread(source.check)
            transfer = await self._transmit(source, window)
        if transfer.refusal is not None:
            refusal = transfer.refusal
            again = "; sending again goes on from there" if refusal.why in RESUMABLE else ""
            self.fail("refused", f"{refusal.text or refusal.why}{again}", why=refusal.why)
            return False
        self._facts |= {"state": "done", "received": source.size, "received_as": transfer.name}
        self._facts["resumed_at"] = transfer.resumed_at if transfer.resumed_at is not None else source.size
        self._end(f"{self._path}: done, {format_size(source.size)}, as {transfer.name!r} there")
        return True

    def take(self, answer: Any) -> None:
        """An answer about this file. Raises `NotAMessage`."""
        transfer = self._transfer
        if transfer is None:
            return
        before = transfer.state, transfer.received
        transfer.take(answer)
        self._changed.set()
        if (transfer.state, transfer.received) != before:
            self.answered = True
            self._sending.note_progress()
            self._facts |= {"received": transfer.received, "resumed_at": transfer.resumed_at, "state": "sending"}
            if not transfer.over:
                self._show()

    def offer_again(self) -> None:
        if self._transfer is not None:
            self._transfer.offer_again()
            self._changed.set()

    def fail(self, state: str, text: str, *, why: str | None = None) -> None:
        self._facts |= {"state": state, "why": why or text}
        self._display.tell(f"{printable(str(self._path))}: {printable(text)}")
        self._end(f"{self._path}: {state}")

    # --- inside ------------------------------------------------------------------------------------------------

    async def _transmit(self, source: Source, window: int) -> Outgoing:
        transfer = self._transfer = Outgoing(self._offer, window=window, chunk=self._sending.chunk())
        self._facts["state"] = "offered"
        self._show()
        pause = RETRY_FIRST
        try:
            while not transfer.over:
                self._changed.clear()
                self._sending.check_peer()
                if self._rejected is not None:
                    pause = await self._recover(transfer, pause)
                    continue
                due = transfer.due() if len(self._under_way) <= 2 * WINDOW // CHUNK else None
                if due is None:
                    await self._changed.wait()
                elif isinstance(due, Read):
                    data = await asyncio.to_thread(source.read, due.offset, due.length)
                    self._begin(transfer.chunk(due, data))
                else:
                    self._begin(due)
                if transfer.state is State.SENDING:
                    pause = RETRY_FIRST
        except SourceChanged:
            self._begin(Cancel(self.id))
            with contextlib.suppress(RondevuClientError):
                await asyncio.gather(*self._under_way)
            raise
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
            self._under_way.clear()
        return transfer

    def _begin(self, message: Request) -> None:
        """Say it, in its turn; what becomes of it is seen later."""
        task = asyncio.create_task(self._sending.say(message), name="say")
        self._under_way.add(task)
        task.add_done_callback(self._said)

    def _said(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self._rejected = self._rejected or task.exception()  # type: ignore[assignment]  # no task raises more
        self._changed.set()

    async def _recover(self, transfer: Outgoing, pause: float) -> float:
        """After a message that the daemon did not store: wait, and ask the receiver where it stands; the next pause.

        Raises the rejection when it will not pass.
        """
        error, self._rejected = self._rejected, None
        if not (isinstance(error, MessageRejected) and error.code in PASSING):
            raise error if error is not None else AssertionError
        self._display.tell(f"{printable(self._path.name)}: tried again in {pause:g} s: {error}")
        await asyncio.sleep(pause)
        if self._under_way:
            await asyncio.wait(self._under_way)
        self._rejected = None
        transfer.offer_again()
        return min(2 * pause, RETRY_LAST)

    def _show(self) -> None:
        self._display.show(self.id, self._facts)

    def _end(self, line: str) -> None:
        self._display.end(self.id, self._facts, printable(line))


@contextlib.asynccontextmanager
async def attach_in_turn(daemon: Daemon, target: str, label: str, display: Display) -> AsyncIterator[Channel]:
    """The channel, once no other program has it. Raises what `Daemon.attach` raises, but for ``in_use``."""
    told = False
    while True:
        try:
            channel = await daemon.attach(target, label)
            break
        except RequestRefused as error:
            if error.code != "in_use":
                raise
        if not told:
            display.tell(
                f"another program has the channel {label!r}; waiting until it is free (or use another --label)"
            )
            told = True
        await asyncio.sleep(BUSY_PAUSE)
    try:
        yield channel
    finally:
        if channel.end_reason is None:
            with contextlib.suppress(RondevuClientError, TimeoutError):
                await channel.detach()


def first_error(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The first error of a group, however deep."""
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
