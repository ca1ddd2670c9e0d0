"""What is received, taken and acknowledged, without a socket."""

from __future__ import annotations

import pytest

from rondevu_client.inbox import Inbox, Message


class Due:
    """Counts how often the daemon may have to be told something."""

    def __init__(self):
        self.calls = 0

    def __call__(self):
        self.calls += 1


@pytest.fixture
def due():
    return Due()


@pytest.fixture
def inbox(due):
    inbox = Inbox(8, due)
    for tag in range(1, 7):
        inbox.put(tag, Message(inbox, tag, [f"text {tag}", f"00-{tag}", 1.5, 1 + tag % 2], "conn-a"))
    return inbox


def test_a_message_tells_what_it_is_without_its_content(inbox):
    message = inbox.take()
    assert (message.data, message.id, message.enqueued_at) == ("text 1", "00-1", 1.5)
    assert (message.connection_id, message.attempt, message.redelivered) == ("conn-a", 2, True)
    assert repr(message) == "<Message 00-1 of conn-a, attempt 2, 6 long>"
    assert Message(inbox, 9, [b"", "00-9", 0.0, 1, "conn-b"], "conn-a").connection_id == "conn-b"


def test_credit_is_given_back_in_halves(inbox):
    for _ in range(3):
        inbox.take()
    assert inbox.take_credit() is None
    inbox.take()
    assert inbox.take_credit() == 4
    assert inbox.take_credit() is None


def test_credit_of_one_is_given_back_at_once(due):
    inbox = Inbox(1, due)
    inbox.put(1, {"count": 1})
    assert inbox.take_credit() is None
    inbox.take()
    assert inbox.take_credit() == 1


async def test_acknowledgements_are_cumulative_and_said_once(inbox, due):
    first, _, third = inbox.take(), inbox.take(), inbox.take()
    calls = due.calls
    await third.ack()
    await first.ack()
    assert due.calls == calls + 2
    assert (inbox.take_ack(), inbox.take_ack()) == (3, None)


def test_what_a_consumer_still_has_holds_back_what_others_are_done_with(inbox):
    for consumer in ("a", "b", "c"):
        inbox.hold(consumer, inbox.take())
    inbox.release("b")
    assert inbox.take_ack() is None
    inbox.release("a")
    assert inbox.take_ack() == 2
    inbox.hold("b", inbox.take())
    inbox.release("c")
    assert inbox.take_ack() == 3
    inbox.release("c")
    assert inbox.take_ack() is None
    inbox.release("b")
    assert inbox.take_ack() == 4


def test_nothing_is_taken_from_an_inbox_that_was_cleared(inbox):
    inbox.take()
    inbox.clear()
    assert not inbox
    with pytest.raises(IndexError):
        inbox.take()
