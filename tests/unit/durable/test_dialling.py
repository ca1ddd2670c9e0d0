"""What a dialler remembers between attempts."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from rondevud.durable import dialling
from rondevud.durable.dialling import DialError, Dialler
from rondevud.durable.effects import LinkDown, LinkUp
from rondevud.durable.sdp import mark
from rondevud.durable.settings import ConnectionSettings, Reconnect
from rondevud.errors import SignallingUnreachable
from rondevud.records import PeerKind
from rondevud.signalling.base import DiscoveredOffer
from tests.unit.durable.test_sdp import AIORTC


def test_a_link_whose_address_has_gone_is_replaced_until_another_one_is_up():
    nobody = cast("Any", None)
    dialler = Dialler(nobody, nobody, nobody, nobody)
    dialler.moved = True
    dialler.settle(LinkDown(2, current=False, code="try_later", reason="busy"))
    assert dialler.moved
    dialler.settle(LinkUp(3, resumed=True, replaced=True))
    assert not dialler.moved


class Dead:
    """A session, a signalling server and an engine at once: an offer is there, and whoever made it does not answer."""

    def __init__(self, *publications: str | None) -> None:
        """The publication that is found at each look, the last one for ever; None: the server does not answer."""
        self.record = SimpleNamespace(kind=PeerKind.UNKNOWN)
        self.connected = self.suspect = False
        self.discarded: list[Any] = []
        self.looks = 0
        self._publications = publications

    async def discover(self, username: str, fqn: str) -> DiscoveredOffer:
        publication = self._publications[min(self.looks, len(self._publications) - 1)]
        self.looks += 1
        if publication is None:
            raise SignallingUnreachable("away")
        return DiscoveredOffer(username, fqn, "uuid", "offer", mark(AIORTC), publication)

    async def answer(self, offer_id: str, text: str) -> None:
        pass

    def has(self, _connection: Any) -> bool:
        return False

    def create_peer_connection(self) -> Any:
        async def create_answer(_offer: str) -> str:
            return AIORTC

        return SimpleNamespace(
            create_answer=create_answer, create_data_channel=lambda label, protocol: SimpleNamespace(state=None)
        )


async def dial(dead: Any, timeout: float) -> None:
    settings = ConnectionSettings(
        "c", "alice", "com.example.chat@1.0.0", reconnect=Reconnect(connection_timeout=timeout)
    )
    await Dialler(dead, dead, dead, dead.discarded.append).dial(settings)


async def test_an_attempt_on_an_offer_that_a_killed_daemon_left_is_given_up_when_the_service_is_back(monkeypatch):
    monkeypatch.setattr(dialling, "LOOK_AGAIN", 0.001)
    dead = Dead("before", "before", None, "before", "after")
    with pytest.raises(DialError, match="published anew") as given_up:
        await dial(dead, 60.0)
    assert (given_up.value.code, given_up.value.counts, given_up.value.delay) == ("offer_outdated", False, (0.0, 0.0))
    assert dead.looks == 5
    assert len(dead.discarded) == 1


async def test_an_attempt_goes_on_while_the_service_is_the_same_one(monkeypatch):
    monkeypatch.setattr(dialling, "LOOK_AGAIN", 0.001)
    dead = Dead("before", "before", None)
    with pytest.raises(TimeoutError):
        await dial(dead, 0.2)
    assert dead.looks > 2
    assert len(dead.discarded) == 1
