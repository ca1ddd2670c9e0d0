"""What may be on the disk when the power fails: files and directories as POSIX promises them, and no better.

A file's content is certain as of its last sync. Of each change since, anything may have arrived: all, nothing, some of its
sectors, its beginning up to any byte, its length but not its bytes; and of several changes any ones. Names are
certain as of the last sync of their directory. A sync covers what was done before it began, and counts when it has
returned without an error. The one thing taken for granted is what SQLite takes for granted, too: a write that is cut
short does not change the bytes beside it.

What lies in shared memory (``-shm``) needs no durability: SQLite makes it anew when the first process opens the database.
Some states hold a file full of garbage in its place, because one may be there.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import NamedTuple, Protocol

from tests.faults.recording import (
    CLOSE,
    LINK,
    MAKE,
    OPEN,
    REMOVE,
    RENAME,
    SHARED,
    SYNC_BEGINS,
    SYNC_ENDS,
    TRUNCATE,
    UNLINK,
    WRITE,
    Record,
)

SECTOR = 512
O_TRUNC = 0o1000
SHARED_MEMORY = "-shm"


class Write(NamedTuple):
    offset: int
    data: bytes


class Truncate(NamedTuple):
    length: int


class Name(NamedTuple):
    """A name in a directory is given to something; None: taken away."""

    name: str
    node: File | Directory | None


class Names(NamedTuple):
    """What happens to names in one step, as in a rename: all or nothing."""

    changes: tuple[Name, ...]


Change = Write | Truncate


@dataclass(eq=False)
class File:
    """`pending` is what has happened since the last sync, in order."""

    durable: bytearray = field(default_factory=bytearray)
    pending: list[Change] = field(default_factory=list)
    syncs: dict[int, int] = field(default_factory=dict)
    """By thread: how much of `pending` the sync covers that is under way."""
    _settled: bytes | None = None
    """What is durable, once somebody has asked for it."""

    def settle(self, count: int) -> None:
        for change in self.pending[:count]:
            apply(self.durable, change)
            self._settled = None
        del self.pending[:count]
        self.syncs = {thread: max(0, covered - count) for thread, covered in self.syncs.items()}

    def after(self, changes: Iterable[Change]) -> bytes:
        """The content if these changes arrive; without any it is one object until the next sync."""
        content: bytearray | None = None
        for change in changes:
            if content is None:
                content = bytearray(self.durable)
            apply(content, change)
        if content is not None:
            return bytes(content)
        if self._settled is None:
            self._settled = bytes(self.durable)
        return self._settled


@dataclass(eq=False)
class Directory:
    durable: dict[str, File | Directory] = field(default_factory=dict)
    pending: list[Names] = field(default_factory=list)
    syncs: dict[int, int] = field(default_factory=dict)

    def settle(self, count: int) -> None:
        for names in self.pending[:count]:
            enter(self.durable, names)
        del self.pending[:count]
        self.syncs = {thread: max(0, covered - count) for thread, covered in self.syncs.items()}

    def now(self) -> dict[str, File | Directory]:
        """As processes see it."""
        names = dict(self.durable)
        for change in self.pending:
            enter(names, change)
        return names


def apply(content: bytearray, change: Change) -> None:
    if isinstance(change, Truncate):
        del content[change.length :]
        content.extend(bytes(change.length - len(content)))
        return
    content.extend(bytes(max(0, change.offset - len(content))))
    content[change.offset : change.offset + len(change.data)] = change.data


def enter(names: dict[str, File | Directory], step: Names) -> None:
    for name, node in step.changes:
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Loss(Protocol):
    """Decides what of the unsynced survives."""

    def keeps(self, step: Names) -> bool: ...

    def keep(self, path: PurePath, changes: list[Change]) -> Iterator[Change]:
        """What is left of the changes of one file."""


Tree = dict[str, bytes]
"""Files of a state by their paths below the disk's root."""


class Disk:
    """One machine's files below `root`, which is there from the beginning; `take` records in their order."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._top = Directory()
        self._open: dict[tuple[int, int], File | Directory] = {}
        self.changed = 0
        """Changes whenever something happened to the disk."""

    def copy(self) -> Disk:
        return copy.deepcopy(self)

    # --- what happens ----------------------------------------------------------------------------------------------

    def take(self, record: Record) -> bool:
        """Let it happen; whether it concerned this disk."""
        if record.kind == OPEN:
            return self._opened(record)
        if record.kind in {UNLINK, REMOVE, RENAME, LINK, MAKE}:
            return self._named(record)
        key = (record.pid, record.fd)
        node = self._open.get(key)
        if node is None:
            return False
        match record.kind:
            case _ if record.kind == CLOSE:
                del self._open[key]
                return False
            case _ if record.kind == SHARED:
                assert self._path(node).endswith(SHARED_MEMORY), "a file that must last is written through memory"
                return False
            case _ if record.kind == WRITE and isinstance(node, File):
                node.pending.append(Write(record.first, record.data))
            case _ if record.kind == TRUNCATE and isinstance(node, File):
                node.pending.append(Truncate(record.first))
            case _ if record.kind == SYNC_BEGINS:
                node.syncs[record.tid] = len(node.pending)
            case _ if record.kind == SYNC_ENDS:
                covered = node.syncs.pop(record.tid)
                if record.result == 0:
                    node.settle(covered)
            case _:
                return False
        self.changed += 1
        return True

    def _opened(self, record: Record) -> bool:
        place = self._place(record.paths[0])
        if place is None:
            self._open.pop((record.pid, record.fd), None)
            return False
        parent, name = place
        node = parent.now().get(name) if name else parent
        made = bool(record.second)
        if made:
            node = File()
            parent.pending.append(Names((Name(name, node),)))
        assert node is not None, f"{record.paths[0]} was opened, and nobody made it"
        if record.first & O_TRUNC and isinstance(node, File):
            node.pending.append(Truncate(0))
        self._open[record.pid, record.fd] = node
        self.changed += made
        return made

    def _named(self, record: Record) -> bool:
        places = [self._place(path) for path in record.paths]
        if places[0] is None:
            return False
        assert None not in places, "from one disk to another"
        (parent, name), (target, other) = places[0], places[-1]
        found = parent.now().get(name)
        if record.kind == MAKE:
            parent.pending.append(Names((Name(name, Directory()),)))
        elif record.kind in {UNLINK, REMOVE}:
            parent.pending.append(Names((Name(name, None),)))
        elif record.kind == LINK:
            target.pending.append(Names((Name(other, found),)))
        else:
            assert parent is target, "a rename between directories is not modelled"
            parent.pending.append(Names((Name(name, None), Name(other, found))))
        self.changed += 1
        return True

    def _place(self, path: str) -> tuple[Directory, str] | None:
        """The directory that a path stands in, and its name there ("" for the root); None = not on this disk."""
        pure = PurePath(path)
        if not pure.is_relative_to(self._root):
            return None
        parts = pure.relative_to(self._root).parts
        node = self._top
        for part in parts[:-1]:
            below = node.now().get(part)
            assert isinstance(below, Directory), f"{path}: nobody made {part}"
            node = below
        return node, parts[-1] if parts else ""

    def _path(self, node: File | Directory) -> str:
        def find(directory: Directory, prefix: str) -> str:
            for name, below in directory.now().items():
                if below is node:
                    return prefix + name
                if isinstance(below, Directory) and (found := find(below, f"{prefix}{name}/")):
                    return found
            return ""

        return find(self._top, "")

    # --- what is left ----------------------------------------------------------------------------------------------

    def after(self, loss: Loss) -> Tree:
        """The files after a power failure at this moment."""
        return dict(self._left(self._top, PurePath(), loss))

    def _left(self, directory: Directory, prefix: PurePath, loss: Loss) -> Iterator[tuple[str, bytes]]:
        names = dict(directory.durable)
        for step in directory.pending:
            if loss.keeps(step):
                enter(names, step)
        for name, node in sorted(names.items()):
            path = prefix / name
            if isinstance(node, Directory):
                yield from self._left(node, path, loss)
            elif not name.endswith(SHARED_MEMORY):
                yield str(path), node.after(loss.keep(path, node.pending))

    def unsynced(self) -> bool:
        """Whether anything could be lost."""

        def any_in(directory: Directory) -> bool:
            nodes = directory.now().items()
            return bool(directory.pending) or any(
                any_in(node) if isinstance(node, Directory) else bool(node.pending)
                for name, node in nodes
                if not name.endswith(SHARED_MEMORY)
            )

        return any_in(self._top)


# --- ways to lose --------------------------------------------------------------------------------------------------


class Nothing:
    """Everything arrived: as when the process dies and the machine does not."""

    def keeps(self, _step: Names) -> bool:
        return True

    def keep(self, _path: PurePath, changes: list[Change]) -> Iterator[Change]:
        yield from changes


class Everything:
    """Nothing arrived that was not synced."""

    def keeps(self, _step: Names) -> bool:
        return False

    def keep(self, _path: PurePath, _changes: list[Change]) -> Iterator[Change]:
        yield from ()


class OnlyOf(Nothing):
    """Files with that ending lose everything, the others nothing; `instead`: the other way round."""

    def __init__(self, ending: str, *, instead: bool = False) -> None:
        self._ending = ending
        self._instead = instead

    def keep(self, path: PurePath, changes: list[Change]) -> Iterator[Change]:
        if path.name.endswith(self._ending) is self._instead:
            yield from changes


class Torn(Nothing):
    """The last change of each file arrived up to some byte; what follows of that sector is garbage, if so drawn."""

    def __init__(self, drawn: random.Random) -> None:
        self._drawn = drawn

    def keep(self, _path: PurePath, changes: list[Change]) -> Iterator[Change]:
        yield from changes[:-1]
        if changes and isinstance(last := changes[-1], Write):
            cut = self._drawn.randrange(len(last.data)) if last.data else 0
            step = self._drawn.choice((1, 1, SECTOR))
            cut -= cut % step
            garbage = self._drawn.randbytes(min(SECTOR, len(last.data) - cut)) if self._drawn.random() < 0.5 else b""
            yield Write(last.offset, last.data[:cut] + garbage)
        elif changes and self._drawn.random() < 0.5:
            yield changes[-1]


class Sectors:
    """Of every change some sectors, and of the names some; `share` of them arrive."""

    def __init__(self, drawn: random.Random, share: float = 0.5) -> None:
        self._drawn = drawn
        self._share = share

    def keeps(self, _step: Names) -> bool:
        return self._drawn.random() < self._share

    def keep(self, _path: PurePath, changes: list[Change]) -> Iterator[Change]:
        for change in changes:
            if isinstance(change, Truncate):
                if self._drawn.random() < self._share:
                    yield change
                continue
            place, end = change.offset, change.offset + len(change.data)
            while place < end:
                behind = min(end, place - place % SECTOR + SECTOR)
                if self._drawn.random() < self._share:
                    yield Write(place, change.data[place - change.offset : behind - change.offset])
                place = behind


class Whole(Sectors):
    """Of all changes some, each whole or not at all: what was done last may have arrived first."""

    def keep(self, _path: PurePath, changes: list[Change]) -> Iterator[Change]:
        yield from (change for change in changes if self._drawn.random() < self._share)


class Hollow(Nothing):
    """Files have the length that was written, and zeros where the bytes should be."""

    def keep(self, _path: PurePath, changes: list[Change]) -> Iterator[Change]:
        for change in changes:
            yield Write(change.offset, bytes(len(change.data))) if isinstance(change, Write) else change
