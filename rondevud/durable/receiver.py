"""One receiving attachment to a channel: its credit, its tags, and which rows of the inbox it has."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

MAX_CREDIT = 2**31


class ReceiverListener(Protocol):
    """Hears what a receiver delivers."""

    def messages(self, tag: int, rows: list[tuple[Any, ...]]) -> None: ...

    def gap(self, tag: int, gap: dict[str, Any]) -> None: ...

    def missed(self, count: int) -> None: ...

    def detached(self, reason: str) -> None: ...


class ReceiverOwner(Protocol):
    """The inbox, as its receivers see it."""

    def pump(self) -> None: ...

    def acknowledge(self, receiver: Receiver, upto_tag: int) -> None: ...

    def leave(self, receiver: Receiver, *, replaced: bool = False) -> None: ...


class _Run(NamedTuple):
    """Rows ``row, row + 1, …`` that were given with the tags ``tag, tag + 1, …``."""

    tag: int
    row: int
    length: int

    @property
    def behind(self) -> int:
        """The row behind the last one."""
        return self.row + self.length


class Receiver:
    """Tags count 1, 2, … over messages and gaps. Modes: ``exclusive``, ``shared`` and ``observe``."""

    def __init__(self, inbox: ReceiverOwner, mode: str, listener: ReceiverListener) -> None:
        self.mode = mode
        self.left = 0
        """Credit."""
        self.paused = False
        self.held = False
        """Whether the store must first learn that somebody has attached."""
        self.listener: ReceiverListener | None = listener
        self._next_tag = 1
        self._inbox = inbox
        self._runs: deque[_Run] = deque()

    @property
    def ready(self) -> bool:
        return self.listener is not None and self.left > 0 and not self.paused and not self.held

    @property
    def busy(self) -> bool:
        """Whether it was given something that it has not acknowledged."""
        return bool(self._runs)

    # --- from the client -------------------------------------------------------------------------------------------

    def credit(self, n: int) -> None:
        """`n` more messages or gaps may be delivered."""
        self.left = min(MAX_CREDIT, self.left + n)
        self._inbox.pump()

    def ack(self, upto_tag: int) -> None:
        """Everything up to `upto_tag` needs no more delivery."""
        self._inbox.acknowledge(self, upto_tag)

    def pause(self) -> None:
        """Deliver nothing until `resume`."""
        self.paused = True

    def resume(self) -> None:
        self.paused = False
        self._inbox.pump()

    def close(self) -> None:
        """The client is gone: what it had not acknowledged goes back."""
        self._inbox.leave(self)

    def detach(self, reason: str) -> None:
        """The handle is taken away."""
        listener = self.listener
        self._inbox.leave(self, replaced=reason == "taken_over")
        if listener is not None:
            listener.detached(reason)

    # --- from the inbox --------------------------------------------------------------------------------------------

    def take_tags(self, count: int) -> int:
        """Spend credit for `count` items; answers the tag of the first."""
        tag = self._next_tag
        self._next_tag += count
        self.left -= count
        return tag

    def has(self, tag: int, row: int, count: int) -> None:
        """Rows in a row were given to it, and are its own until it acknowledges them or leaves."""
        self._runs.append(_Run(tag, row, count))

    def take_acknowledged(self, upto_tag: int) -> Iterator[tuple[int, int]]:
        """The rows ``(first, behind)`` given with tags up to `upto_tag`; they are not its own any more."""
        while self._runs and self._runs[0].tag <= upto_tag:
            tag, row, length = self._runs.popleft()
            done = min(length, upto_tag + 1 - tag)
            if done < length:
                self._runs.appendleft(_Run(tag + done, row + done, length - done))
            yield row, row + done

    def own(self) -> Iterator[tuple[int, int]]:
        """The rows ``(first, behind)`` that it was given and has not acknowledged."""
        return ((run.row, run.behind) for run in self._runs)

    def disown_below(self, row: int) -> None:
        """The rows below `row` are gone."""
        kept = ((run, max(0, row - run.row)) for run in self._runs if run.behind > row)
        self._runs = deque(_Run(run.tag + cut, run.row + cut, run.length - cut) for run, cut in kept)
