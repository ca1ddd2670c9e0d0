"""What a dialler remembers between attempts."""

from __future__ import annotations

from typing import Any, cast

from rondevud.durable.dialling import Dialler
from rondevud.durable.effects import LinkDown, LinkUp


def test_a_link_whose_address_has_gone_is_replaced_until_another_one_is_up():
    nobody = cast("Any", None)
    dialler = Dialler(nobody, nobody, nobody, nobody)
    dialler.moved = True
    dialler.settle(LinkDown(2, current=False, code="try_later", reason="busy"))
    assert dialler.moved
    dialler.settle(LinkUp(3, resumed=True, replaced=True))
    assert not dialler.moved
