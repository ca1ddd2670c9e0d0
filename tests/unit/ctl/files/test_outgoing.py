"""The sender's side of one file: what it makes of answers."""

from __future__ import annotations

import pytest

from rondevud.ctl.files.outgoing import Outgoing, Read, State
from rondevud.ctl.files.protocol import Done, End, Lost, NotAMessage, Offer, Progress, Refused, Resume, Unknown

ID, RUN, OTHER = b"i" * 16, b"run 1   ", b"run 2   "
OFFER = Offer(ID, RUN, "a", 100, b"h" * 32)


@pytest.fixture
def sending() -> Outgoing:
    """Offered and answered: nothing is there."""
    outgoing = Outgoing(OFFER, window=40, chunk=10)
    assert outgoing.due() == OFFER
    assert outgoing.due() is None
    outgoing.take(Resume(ID, RUN, 0, 1_000))
    return outgoing


def reads(outgoing: Outgoing) -> list[int]:
    """Offsets of all that is due."""
    found = []
    while isinstance(due := outgoing.due(), Read):
        found.append(due.offset)
    return found


def test_no_more_than_the_window_is_under_way(sending):
    assert reads(sending) == [0, 10, 20, 30]
    sending.take(Progress(ID, RUN, 25))
    assert reads(sending) == [40, 50]


def test_pieces_are_as_the_receiver_takes_them(sending):
    sending.take(Resume(ID, RUN, 50, 7))
    assert sending.due() == Read(50, 7)
    assert sending.due() == Read(57, 7)


def test_a_window_smaller_than_a_piece_lets_one_piece_through():
    outgoing = Outgoing(OFFER, window=4, chunk=10)
    outgoing.due()
    outgoing.take(Resume(ID, RUN, 0, 1_000))
    assert reads(outgoing) == [0]


def test_the_end_is_said_once_and_again_after_it_was_resumed(sending):
    sending.take(Resume(ID, RUN, 95, 1_000))
    assert [sending.due() for _ in range(3)] == [Read(95, 5), End(ID), None]
    sending.take(Resume(ID, RUN, 95, 1_000))
    assert [sending.due() for _ in range(3)] == [Read(95, 5), End(ID), None]
    sending.take(Done(ID, RUN, "a (2)"))
    assert (sending.state, sending.name, sending.received, sending.due()) == (State.DONE, "a (2)", 100, None)


@pytest.mark.parametrize(
    "answer", [Resume(ID, OTHER, 50, 10), Progress(ID, OTHER, 50), Done(ID, OTHER, "a"), Refused(ID, OTHER, "hash", "")]
)
def test_answers_to_another_run_are_passed_over(sending, answer):
    sending.take(answer)
    assert (sending.state, sending.received) == (State.SENDING, 0)
    assert reads(sending) == [0, 10, 20, 30]


def test_what_the_receiver_does_not_know_is_offered_again_once(sending):
    reads(sending)
    sending.take(Unknown(ID))
    sending.take(Unknown(ID))
    assert sending.due() == OFFER
    sending.take(Unknown(ID))
    assert sending.due() is None


def test_what_may_be_lost_is_offered_again_also_before_the_first_answer():
    outgoing = Outgoing(OFFER)
    assert outgoing.due() == OFFER
    outgoing.take(Lost())
    assert outgoing.due() == OFFER


def test_what_the_receiver_has_meanwhile_is_not_sent(sending):
    sending.take(Progress(ID, RUN, 33))
    assert sending.due() == Read(33, 10)


@pytest.mark.parametrize("answer", [Resume(ID, RUN, 101, 10), Progress(ID, RUN, 101)])
def test_more_than_the_file_is_impossible(sending, answer):
    with pytest.raises(NotAMessage, match="101 bytes of a file of 100"):
        sending.take(answer)
