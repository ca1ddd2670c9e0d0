"""Keys of user names between daemons and a signalling server."""

from __future__ import annotations

import pytest

from rondevu_client import RequestRefused
from tests.integration.daemons import FQN, SERVICE


async def test_a_name_is_free_then_ours_and_for_others_taken(world):
    home, away = await world.daemon("home"), await world.daemon("away")
    program, stranger = await home.client(), await away.client()
    free = await program.check("alice")
    assert (free["available"], free["holder"], free["public_key"], free["own_key"]) == (True, "nobody", None, None)
    await program.claim("alice")
    ours = await program.check("alice")
    assert (ours["holder"], ours["public_key"]) == ("ours", ours["own_key"])
    theirs = await stranger.check("alice")
    assert (theirs["holder"], theirs["public_key"], theirs["own_key"]) == ("other", ours["public_key"], None)
    assert theirs["expires_at"] > theirs["claimed_at"]


async def test_another_key_is_told_that_the_name_is_taken_until_the_right_one_is_imported(world):
    home, away = await world.daemon("home"), await world.daemon("away")
    program, second = await home.client(), await away.client()
    await program.claim("alice")
    await second.call("key_generate", {"username": "alice"})
    for method, params in (("claim", {}), ("expose", {"fqn": FQN})):
        with pytest.raises(RequestRefused, match="held by another key") as refused:
            await second.call(method, {"username": "alice", **params})
        assert refused.value.code == "name_taken"
    assert (await second.check("alice"))["holder"] == "other"
    exported = await program.call("key_export", {"username": "alice"})
    await second.call("key_import", {**exported, "force": True})
    assert (await second.check("alice"))["holder"] == "ours"
    assert (await second.claim("alice"))["username"] == "alice"


async def test_a_name_that_is_none_gets_an_error_that_says_so(world):
    program = await (await world.daemon("home")).client()
    with pytest.raises(RequestRefused, match="3 to 32 characters") as refused:
        await program.claim("No Name")
    assert refused.value.code == "bad_params"


async def test_a_key_that_a_service_needs_is_not_replaced_by_another(world):
    program = await (await world.daemon("one")).client()
    await program.expose_service("alice", FQN, **SERVICE)
    own = (await program.key_export("alice"))["private_key"]
    await program.key_generate("carol")
    other = (await program.key_export("carol"))["private_key"]
    with pytest.raises(RequestRefused, match=f"alice/{FQN} needs the key") as refused:
        await program.key_import("alice", other, force=True)
    assert (refused.value.code, refused.value.data) == ("key_in_use", {"services": [f"alice/{FQN}"]})
    assert (await program.key_export("alice"))["private_key"] == own
    await program.key_import("alice", own, force=True)
    await program.withdraw("alice", FQN, drain=0)
    assert (await program.key_import("alice", other, force=True))["kept"]
