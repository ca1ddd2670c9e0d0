"""Both sides of transfers joined by queues that repeat, while programs are killed and machines lose their power."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from rondevud.ctl.files.incoming import Incoming, Record
from rondevud.ctl.files.outgoing import Outgoing, Read, State
from rondevud.ctl.files.protocol import HASH, Lost, Offer, Refused, pack, parse, transfer_id

pytestmark = [pytest.mark.timeout(300), pytest.mark.once]

CHUNK, WINDOW = 4, 12
CONTENTS = st.lists(st.binary(max_size=8) | st.binary(min_size=20, max_size=60), min_size=1, max_size=3, unique=True)


class MemoryPart:
    def __init__(self, shelf: MemoryShelf, key: bytes) -> None:
        self._shelf, self._key = shelf, key
        shelf.written.setdefault(key, bytearray())

    @property
    def size(self) -> int:
        return len(self._shelf.written[self._key])

    def write(self, offset: int, data: bytes) -> None:
        self._shelf.may_fail()
        content = self._shelf.written[self._key]
        assert offset <= len(content), "a hole"
        content[offset : offset + len(data)] = data

    def sync(self) -> None:
        self._shelf.synced[self._key] = bytes(self._shelf.written[self._key])

    def truncate(self, size: int) -> None:
        del self._shelf.written[self._key][size:]

    def sha256(self) -> bytes:
        return hashlib.sha256(self._shelf.written[self._key]).digest()

    def close(self) -> None: ...


@dataclass
class MemoryShelf:
    records: dict[bytes, Record] = field(default_factory=dict)
    written: dict[bytes, bytearray] = field(default_factory=dict)
    synced: dict[bytes, bytes] = field(default_factory=dict)
    finals: dict[str, bytes] = field(default_factory=dict)
    full: bool = False

    def may_fail(self) -> None:
        if self.full:
            raise OSError(28, "No space left on device")

    def load(self) -> list[Record]:
        return list(self.records.values())

    def save(self, record: Record) -> None:
        self.may_fail()
        self.records[record.id] = record

    def open(self, record: Record) -> MemoryPart:
        return MemoryPart(self, record.id)

    def publish(self, record: Record) -> Record:
        self.may_fail()
        name = f"{record.name} {len(self.finals)}"
        self.finals[name] = self.synced.pop(record.id)
        del self.written[record.id]
        self.records[record.id] = replace(record, final=name)
        return self.records[record.id]

    def has(self, record: Record) -> bool:
        return record.final in self.finals

    def remove(self, record: Record) -> None:
        for store in (self.records, self.written, self.synced):
            store.pop(record.id, None)

    def free(self) -> int:
        return 0 if self.full else 10**9

    def expire(self, records: list[Record]) -> list[Record]:
        return []

    def lose_power(self, garbage: int) -> None:
        """What was not synced is gone, or there is something else in its place."""
        for key, content in self.written.items():
            synced = self.synced.get(key, b"")
            longer = max(0, len(content) - len(synced))
            content[:] = synced + b"?" * min(garbage, longer)


class Queue:
    """Messages in order, kept until they are acknowledged, delivered again from there after an interruption."""

    def __init__(self) -> None:
        self.kept: list[bytes] = []
        self.delivered = 0

    def put(self, message) -> None:
        self.kept.append(pack(message))

    def next(self):
        if self.delivered == len(self.kept):
            return None
        self.delivered += 1
        return parse(self.kept[self.delivered - 1])

    def acknowledge(self) -> None:
        del self.kept[: self.delivered]
        self.delivered = 0

    def repeat(self) -> None:
        self.delivered = 0

    def lose(self) -> None:
        """What is on its way is removed, and both programs are told."""
        self.kept.clear()
        self.delivered = 0


class Interruptions(RuleBasedStateMachine):
    """Any number of interruptions; then everything runs to its end, and the files are there, each once."""

    @initialize(contents=CONTENTS)
    def begin(self, contents: list[bytes]) -> None:
        self.contents = contents
        self.shelf = MemoryShelf()
        self.there, self.back = Queue(), Queue()
        self.runs = 0
        self.lossy = self.was_full = False
        self.start_sender()
        self.start_receiver()

    def start_sender(self) -> None:
        self.runs += 1
        self.outgoing = {}
        for number, content in enumerate(self.contents):
            digest = hashlib.sha256(content).digest()
            key = transfer_id(str(number), len(content), digest)
            offer = Offer(key, self.runs.to_bytes(8, "big"), str(number), len(content), digest)
            self.outgoing[key] = (Outgoing(offer, window=WINDOW, chunk=CHUNK), content)

    def start_receiver(self) -> None:
        self.incoming = Incoming(self.shelf, chunk=CHUNK)

    def answer(self, answers) -> None:
        for answer in answers:
            self.back.put(answer)

    # --- steps -------------------------------------------------------------------------------------------------

    @rule(which=st.integers(0, 2), steps=st.integers(1, 6))
    def send(self, which: int, steps: int) -> None:
        self.do_send(which, steps)

    def do_send(self, which: int, steps: int) -> int:
        transfer, content = list(self.outgoing.values())[which % len(self.outgoing)]
        done = 0
        for _ in range(steps):
            due = transfer.due()
            if due is None:
                break
            done += 1
            if isinstance(due, Read):
                self.there.put(transfer.chunk(due, content[due.offset : due.offset + due.length]))
            else:
                self.there.put(due)
        return done

    @rule(steps=st.integers(1, 6))
    def receive(self, steps: int) -> None:
        self.do_receive(steps)

    def do_receive(self, steps: int) -> int:
        done = 0
        while done < steps and (message := self.there.next()) is not None:
            self.answer(self.incoming.take(message))
            done += 1
        return done

    @rule()
    def sync_and_acknowledge(self) -> None:
        self.answer(self.incoming.sync())
        self.there.acknowledge()

    @rule(steps=st.integers(1, 6), acknowledge=st.booleans())
    def hear(self, steps: int, acknowledge: bool) -> None:
        self.do_hear(steps, acknowledge)

    def do_hear(self, steps: int, acknowledge: bool) -> int:
        done = 0
        while done < steps and (answer := self.back.next()) is not None:
            if isinstance(answer, Refused) and answer.why == HASH:
                assert self.lossy or self.was_full, "what is on the disk is not what was sent"
            if isinstance(answer, Lost):
                for transfer, _ in self.outgoing.values():
                    transfer.take(answer)
            elif answer.id in self.outgoing:
                self.outgoing[answer.id][0].take(answer)
            done += 1
        if acknowledge:
            self.back.acknowledge()
        return done

    # --- interruptions -----------------------------------------------------------------------------------------

    @rule()
    def kill_sender(self) -> None:
        self.back.repeat()
        self.start_sender()

    @rule(garbage=st.none() | st.integers(0, 20))
    def kill_receiver(self, garbage: int | None) -> None:
        """With `garbage` its machine loses its power, and so many bytes stand where others were not synced."""
        self.there.repeat()
        if garbage is not None:
            self.shelf.lose_power(garbage)
        self.start_receiver()

    @rule()
    def kill_a_daemon(self) -> None:
        self.there.repeat()
        self.back.repeat()

    @rule(there=st.booleans(), back=st.booleans())
    def lose_messages(self, there: bool, back: bool) -> None:
        self.lossy = True
        if there:
            self.there.lose()
            self.answer(self.incoming.ask())
        if back:
            self.back.lose()
            for transfer, _ in self.outgoing.values():
                transfer.offer_again()

    @rule()
    def fill_the_disk(self) -> None:
        self.shelf.full = self.was_full = True

    @rule()
    def make_room(self) -> None:
        self.shelf.full = False
        self.send_refused_again()

    def send_refused_again(self) -> None:
        if any(transfer.state is State.REFUSED for transfer, _ in self.outgoing.values()):
            self.start_sender()

    # --- what is always true -----------------------------------------------------------------------------------

    @invariant()
    def no_file_appears_that_is_not_right(self) -> None:
        if hasattr(self, "shelf"):
            assert all(content in self.contents for content in self.shelf.finals.values())

    @invariant()
    def little_is_under_way(self) -> None:
        for transfer, _ in getattr(self, "outgoing", {}).values():
            assert transfer._position - transfer.received <= WINDOW + CHUNK

    def teardown(self) -> None:
        if not hasattr(self, "shelf"):
            return
        self.shelf.full = False
        self.run_to_the_end()
        for _ in range(3):
            assert all(transfer.over for transfer, _ in self.outgoing.values()), "a transfer has stopped for nothing"
            self.send_refused_again()  # as who types the command again
            self.run_to_the_end()
        assert all(transfer.state is State.DONE for transfer, _ in self.outgoing.values())
        assert sorted(self.shelf.finals.values()) == sorted(self.contents), "each once"
        assert not self.shelf.written

    def run_to_the_end(self) -> None:
        while True:
            moved = self.do_receive(1_000)
            self.sync_and_acknowledge()
            moved += self.do_hear(1_000, acknowledge=True)
            moved += sum(self.do_send(which, 1_000) for which in range(len(self.outgoing)))
            if not moved:
                return


TestInterruptions = Interruptions.TestCase
EXAMPLES = 2 * settings.default.max_examples
"""More than of others: what has to come together is rare."""

TestInterruptions.settings = settings(max_examples=EXAMPLES, stateful_step_count=50)
