"""The receiver's side: the files that one connection sends. No I/O of its own: messages in, answers out, bytes to a folder.

What is done for a message is repeatable: a message that comes again, because the program or a daemon was killed before it
was acknowledged, changes nothing and is answered again. For that the folder keeps a record of each file: the offer, and
when it is done the name it got.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

from rondevud.ctl.files.names import safe_name
from rondevud.ctl.files.protocol import (
    BEYOND,
    CHUNK,
    CONFLICT,
    DISK_FULL,
    HASH,
    TEXT_BYTES,
    TOO_LARGE,
    TOO_MANY,
    WRITE_FAILED,
    Answer,
    Cancel,
    Chunk,
    Done,
    End,
    Lost,
    Offer,
    Progress,
    Refused,
    Request,
    Resume,
    Unknown,
)

UNFINISHED = 8
"""Files that one connection can have begun and not ended."""

UNKNOWN_TOLD = 64
"""Ids of unknown transfers that are remembered, so that each is answered once."""

DONE_KEPT = 1_000
"""Finished files of one connection that are remembered."""


@dataclass(frozen=True, slots=True)
class Record:
    """What the folder keeps of a file."""

    id: bytes
    run: bytes
    name: str
    """As it was offered, made safe."""
    size: int
    sha256: bytes
    final: str | None = None
    """The name it got; None while it is not done."""
    inode: int = 0
    modified: int = 0
    """Of the finished file, in nanoseconds since 1970; with `inode`, whether it still lies there."""


class Part(Protocol):
    """The bytes of an unfinished file. All of it raises `OSError`."""

    @property
    def size(self) -> int: ...

    def write(self, offset: int, data: bytes) -> None: ...

    def sync(self) -> None:
        """Returns when everything written is on the disk."""

    def truncate(self, size: int) -> None: ...

    def sha256(self) -> bytes:
        """Of all of it, as it can be read."""

    def close(self) -> None: ...


class Shelf(Protocol):
    """What one connection has in the folder. Everything raises `OSError`, and is on the disk when it returns."""

    def load(self) -> list[Record]:
        """All records, the oldest first; what is done to those that were interrupted has been repaired."""

    def save(self, record: Record) -> None: ...

    def open(self, record: Record) -> Part:
        """The bytes of an unfinished file; empty ones where there are none yet."""

    def publish(self, record: Record) -> Record:
        """Give the finished file its name, one that nobody has; the record with it, saved."""

    def has(self, record: Record) -> bool:
        """Whether the finished file lies there under its name, untouched."""

    def remove(self, record: Record) -> None:
        """Forget it, with its unfinished bytes; a finished file stays."""

    def free(self) -> int:
        """Bytes that can still be written."""

    def expire(self, records: list[Record]) -> list[Record]:
        """Those of the unfinished ones that have been left for too long."""


@dataclass(frozen=True, slots=True)
class News:
    """Something worth showing."""

    record: Record
    state: str
    """``receiving``, ``done``, ``already`` (was received before and lies there), ``refused`` or ``cancelled``."""
    received: int
    why: str | None = None


class _Transfer:
    """A file that is being received."""

    def __init__(self, record: Record, part: Part) -> None:
        self.record = record
        self.part = part
        self.received = self.kept = part.size
        """`kept` is what was there when it was opened: nothing that fails takes it away."""
        self.synced = 0
        """What was brought to the disk since. What was not acknowledged before a start comes again and is written again, so
        that a length that outlived a power cut without its bytes does no harm."""
        self.dirty = False
        self.told = 0
        self.asked = False
        """Whether a hole was spoken of since the last piece that fitted."""


class Incoming:
    """All files of one channel; `take` each message in order, `sync`, say the answers, then acknowledge.

    `max_size` is the longest file that is taken, in bytes; `chunk` the longest piece.
    """

    def __init__(self, shelf: Shelf, *, max_size: int | None = None, chunk: int = CHUNK) -> None:
        self._shelf = shelf
        self._max_size = max_size
        self._chunk = chunk
        self._records: dict[bytes, Record] = {record.id: record for record in shelf.load()}
        self._open: dict[bytes, _Transfer] = {}
        self._paused: set[bytes] = set()
        """Refused for a reason that may pass: pieces that are still under way are dropped until it is offered again."""
        self._unknown_told: dict[bytes, None] = {}
        self.news: list[News] = []
        """For who shows them, and clears them."""
        self.dirty = 0
        """Bytes written that may not be on the disk."""

    def take(self, message: Request) -> list[Answer]:
        """Do what a message says; what to answer."""
        if isinstance(message, Offer):
            return self._take_offer(message)
        if isinstance(message, Cancel):
            return self._cancel(message.id)
        record = self._records.get(message.id)
        if record is None:
            return self._say_unknown(message.id)
        if record.final is not None:
            return [Done(record.id, record.run, record.final)] if isinstance(message, End) else []
        if record.id in self._paused:
            return []
        try:
            transfer = self._transfer(record)
            return self._take_chunk(transfer, message) if isinstance(message, Chunk) else self._end(transfer)
        except OSError as error:
            return self._fail(record, error)

    def sync(self) -> list[Answer]:
        """Bring to the disk what was written; afterwards everything taken can be acknowledged."""
        answers: list[Answer] = []
        for transfer in list(self._open.values()):
            try:
                if transfer.dirty:
                    self._sync(transfer)
            except OSError as error:
                answers += self._fail(transfer.record, error)
            else:
                if transfer.received != transfer.told:
                    answers.append(self._progress(transfer))
        self.dirty = 0
        return answers

    def ask(self) -> list[Answer]:
        """Messages were lost on the way; of what, nobody knows here."""
        return [Lost()]

    def close(self) -> None:
        """Close what is open; it goes on in another `Incoming`."""
        for transfer in self._open.values():
            transfer.part.close()
        self._open.clear()

    # --- offers ------------------------------------------------------------------------------------------------

    def _take_offer(self, offer: Offer) -> list[Answer]:
        self._unknown_told.pop(offer.id, None)
        self._paused.discard(offer.id)
        try:
            return self._answer_offer(offer)
        except OSError as error:
            record = self._records.get(offer.id)
            if record is not None:
                return self._fail(replace(record, run=offer.run), error)
            return [_refusal(offer, *_reason(error))]

    def _answer_offer(self, offer: Offer) -> list[Answer]:
        known = self._records.get(offer.id)
        if known is not None and (known.size, known.sha256) != (offer.size, offer.sha256):
            return [_refusal(offer, CONFLICT, "another file was offered with the same id")]
        if known is not None and known.final is not None:
            # The same run can only ask about the file it sent; another one may mean it to be sent once more.
            if known.run == offer.run or self._shelf.has(known):
                if known.run != offer.run:
                    self._save(replace(known, run=offer.run))
                    self.news.append(News(known, "already", known.size))
                return [Done(offer.id, offer.run, known.final)]
            self._forget(known)
            known = None
        if known is None:
            refused = self._refuse_new(offer)
            if refused is not None:
                return [refused]
            known = Record(offer.id, offer.run, safe_name(offer.name), offer.size, offer.sha256)
            self._save(known)
        elif known.run != offer.run:
            known = replace(known, run=offer.run)
            self._save(known)
        transfer = self._transfer(known)
        transfer.record = known
        if offer.size - transfer.received > self._shelf.free():
            raise OSError(errno.ENOSPC, "no space left")
        self.news.append(News(known, "receiving", transfer.received))
        return [self._resume(transfer)]

    def _refuse_new(self, offer: Offer) -> Refused | None:
        if self._max_size is not None and offer.size > self._max_size:
            return _refusal(offer, TOO_LARGE, f"{offer.size} bytes are more than the {self._max_size} that are taken")
        if len(self._unfinished()) >= UNFINISHED:
            for record in self._shelf.expire(self._unfinished()):
                self._forget(record)
        if len(self._unfinished()) >= UNFINISHED:
            return _refusal(offer, TOO_MANY, f"{UNFINISHED} files of this connection are unfinished")
        return None

    def _unfinished(self) -> list[Record]:
        return [record for record in self._records.values() if record.final is None]

    # --- pieces ------------------------------------------------------------------------------------------------

    def _take_chunk(self, transfer: _Transfer, chunk: Chunk) -> list[Answer]:
        end = chunk.offset + len(chunk.data)
        if end > transfer.record.size:
            return self._refuse(transfer.record, BEYOND, f"a piece ends at {end}, the file at {transfer.record.size}")
        if chunk.offset > transfer.received:
            return self._ask_once(transfer)
        if end > transfer.synced:
            transfer.dirty = True
            transfer.part.write(chunk.offset, chunk.data)
            self.dirty += len(chunk.data)
        if end > transfer.received:
            transfer.received, transfer.asked = end, False
        return []

    def _end(self, transfer: _Transfer) -> list[Answer]:
        if transfer.received < transfer.record.size:
            return self._ask_once(transfer)
        self._sync(transfer)
        if transfer.part.sha256() != transfer.record.sha256:
            return self._refuse(transfer.record, HASH, "what was received has another SHA-256 than what was offered")
        self._open.pop(transfer.record.id).part.close()
        record = self._shelf.publish(transfer.record)
        self._records.pop(record.id)
        self._records[record.id] = record  # the newest of those that are done
        self._trim_done()
        self.news.append(News(record, "done", record.size))
        return [Done(record.id, record.run, record.final or "")]

    def _sync(self, transfer: _Transfer) -> None:
        transfer.part.sync()
        transfer.synced, transfer.dirty = transfer.received, False

    def _ask_once(self, transfer: _Transfer) -> list[Answer]:
        """Pieces that were under way behind a hole are not answered one by one."""
        if transfer.asked:
            return []
        transfer.asked = True
        return [self._resume(transfer)]

    def _resume(self, transfer: _Transfer) -> Resume:
        return Resume(transfer.record.id, transfer.record.run, transfer.received, self._chunk)

    def _progress(self, transfer: _Transfer) -> Progress:
        transfer.told = transfer.received
        self.news.append(News(transfer.record, "receiving", transfer.received))
        return Progress(transfer.record.id, transfer.record.run, transfer.received)

    def _transfer(self, record: Record) -> _Transfer:
        if record.id not in self._open:
            part = self._shelf.open(record)
            if part.size > record.size:
                part.truncate(record.size)
            self._open[record.id] = _Transfer(record, part)
        return self._open[record.id]

    # --- ends --------------------------------------------------------------------------------------------------

    def _say_unknown(self, transfer_id: bytes) -> list[Answer]:
        if transfer_id in self._unknown_told:
            return []
        if len(self._unknown_told) == UNKNOWN_TOLD:
            del self._unknown_told[next(iter(self._unknown_told))]
        self._unknown_told[transfer_id] = None
        return [Unknown(transfer_id)]

    def _cancel(self, transfer_id: bytes) -> list[Answer]:
        record = self._records.get(transfer_id)
        if record is not None and record.final is None:
            self.news.append(News(record, "cancelled", 0))
            self._quietly(lambda: self._forget(record))
        return []

    def _refuse(self, record: Record, why: str, text: str) -> list[Answer]:
        """For good: what was received goes. Pieces that are still under way are not answered."""
        self._quietly(lambda: self._forget(record))
        self._say_unknown(record.id)
        self.news.append(News(record, "refused", 0, why))
        return [Refused(record.id, record.run, why, text)]

    def _fail(self, record: Record, error: OSError) -> list[Answer]:
        """For now: what is on the disk stays, and is gone on from when the file is offered again."""
        why, text = _reason(error)
        transfer = self._open.pop(record.id, None)
        kept = 0
        if transfer is not None:
            kept = max(transfer.kept, transfer.synced)
            self._quietly(lambda: transfer.part.truncate(kept))
            self._quietly(transfer.part.close)
        if kept or transfer is None:
            self._paused.add(record.id)
        else:  # not worth a place among those that can be unfinished
            self._quietly(lambda: self._forget(record))
            self._say_unknown(record.id)
        self.news.append(News(record, "refused", kept, why))
        return [Refused(record.id, record.run, why, text)]

    def _save(self, record: Record) -> None:
        self._shelf.save(record)
        self._records[record.id] = record

    def _forget(self, record: Record) -> None:
        self._records.pop(record.id, None)
        self._paused.discard(record.id)
        transfer = self._open.pop(record.id, None)
        if transfer is not None:
            self._quietly(transfer.part.close)
        self._shelf.remove(record)

    def _trim_done(self) -> None:
        done = [record for record in self._records.values() if record.final is not None]
        for record in done[:-DONE_KEPT]:
            self._forget(record)

    @staticmethod
    def _quietly(work: Callable[[], None]) -> None:
        """What is given up need not succeed."""
        with contextlib.suppress(OSError):
            work()


def _reason(error: OSError) -> tuple[str, str]:
    full = error.errno in {errno.ENOSPC, errno.EDQUOT}
    text = error.strerror or type(error).__name__
    return (DISK_FULL if full else WRITE_FAILED), f"the receiver cannot write: {text}"[:TEXT_BYTES]


def _refusal(offer: Offer, why: str, text: str) -> Refused:
    return Refused(offer.id, offer.run, why, text)
