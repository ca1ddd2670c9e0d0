"""Commands about sessions: what they ask for, and what they say when that is refused."""

from __future__ import annotations

import json

import pytest

from rondevud.errors import RequestError


class Sessions:
    """Answers with what it was asked for."""

    def __init__(self):
        self.empty = True

    def list(self, target):
        return [{"connection_id": "conn-a", "service": "a/b", "state": "absent", "blocked": False, "target": target}]

    async def forget(self, target, *, force):
        if not self.empty and not force:
            raise RequestError("not_empty", "2 messages wait for the peer and 0 for programs here", {"queue_size": 2})
        return {"connection_id": target, "purged": {"out": 2, "in": 0}}

    async def kick(self, target, pause):
        return {"connection_id": target, "was_connected": True, "pause": pause}

    async def block(self, target):
        return {"connection_id": target, "blocked": True, "was_connected": False}

    async def unblock(self, target):
        return {"connection_id": target, "blocked": False}


@pytest.fixture(autouse=True)
def sessions(house):
    house.sessions = Sessions()
    return house.sessions


@pytest.mark.parametrize(
    ("words", "answer"),
    [
        (("kick", "conn-a"), {"connection_id": "conn-a", "was_connected": True, "pause": 10.0}),
        (("kick", "conn-a", "--for", "0"), {"connection_id": "conn-a", "was_connected": True, "pause": 0.0}),
        (("block", "conn-a"), {"connection_id": "conn-a", "blocked": True, "was_connected": False}),
        (("unblock", "conn-a"), {"connection_id": "conn-a", "blocked": False}),
        (("forget", "conn-a"), {"connection_id": "conn-a", "purged": {"out": 2, "in": 0}}),
    ],
)
async def test_a_command_asks_for_what_it_says(ctl, words, answer):
    done = await ctl("--json", *words)
    assert (done.code, json.loads(done.out)) == (0, answer)


async def test_sessions_are_listed_all_or_those_of_a_target(ctl):
    assert json.loads((await ctl("--json", "sessions")).out)[0]["target"] is None
    assert json.loads((await ctl("--json", "sessions", "service:a/b")).out)[0]["target"] == "service:a/b"
    heading, row = (await ctl("sessions")).out.splitlines()
    assert (heading.split(), row.split()) == (
        ["CONNECTION_ID", "SERVICE", "STATE", "BLOCKED"],
        ["conn-a", "a/b", "absent", "no"],
    )


async def test_a_session_in_which_messages_wait_is_forgotten_with_purge_only(ctl, sessions):
    sessions.empty = False
    done = await ctl("forget", "conn-a")
    assert (done.code, done.out) == (1, "")
    assert "(not_empty)\n`--purge` removes them" in done.err
    assert (await ctl("forget", "conn-a", "--purge")).code == 0
