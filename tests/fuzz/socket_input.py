"""What a bad program writes on the daemon's socket: requests and notifications as they should be, and damaged ones.

Nothing here, damaged or not, reaches what the good programs of the test use: names and targets are of its own.
"""

from __future__ import annotations

from typing import Any

from tests.fuzz.mutator import Case, Raw, pack

PREY = "prey"
"""A connection that never comes up."""

LABELS = ("main", "other", "third", "é", "rondevu", "x" * 256)
USERS = ("mallory", "m", "../../etc", "Mallory", "mal-lory")
FQNS = ("com.example.prey@1.0.0", "com.example.other@1.0.0", "prey", "com.example.prey@")
MOST_NAMES = 3
"""Connections and services that it may make."""

DAMAGED = 0.5
"""Share of the frames that are damaged."""


def hello() -> dict[str, Any]:
    return {"protocol": [1], "client": "fuzz"}


def requests(case: Case) -> dict[str, dict[str, Any]]:
    """A right request of each method, about."""
    random = case.random
    target, label, handle = random.choice((PREY, PREY, made(case))), random.choice(LABELS), random.randrange(8)
    user, fqn = random.choice(USERS), random.choice(FQNS)
    options = random.choice(
        ({}, {"max_queue_size": 5}, {"ordered": False, "max_retransmits": 3}, {"durability": "memory"})
    )
    return {
        "hello": hello(),
        "ping": {},
        "status": {},
        "clients": {},
        "connections": {},
        "services": {},
        "channels": {"target": target},
        "attach": {
            "target": target,
            "label": label,
            "mode": random.choice(("exclusive", "shared", "observe", "send")),
            "takeover": case.chance(0.5),
            "producer": random.choice((b"p", b"q" * 64)),
            "credit": random.choice((0, 1, 100)),
            "acknowledged": case.chance(0.5),
            "confirm_sent": case.chance(0.5),
            "options": options,
        },
        "threshold": {"handle": handle, "bytes": 100},
        "detach": {"handle": handle},
        "close_channel": {"target": target, "label": label},
        "connect": {"username": "nobody", "fqn": "com.example.nobody@1.0.0", "name": made(case), "options": {}},
        "close": {"target": made(case), "drain": random.choice((0, 0.5))},
        "reconnect": {"target": target},
        "wait": {"target": target, "for": random.choice(("connected", "drained")), "timeout": 0.01},
        "why": {"target": target},
        "subscribe": {"target": random.choice((target, "service:alice/x", "*")), "since": 0},
        "unsubscribe": {"subscription": handle},
        "queue": {"target": target, "label": label},
        "purge": {"target": target, "label": label, "direction": random.choice(("out", "in", "both"))},
        "expose": {"username": "mallory", "fqn": fqn, "options": {"pool_size": 1}, "ephemeral": True},
        "withdraw": {"username": "mallory", "fqn": fqn, "drain": 0, "keep_connections": False},
        "check": {"username": user},
        "key_list": {},
        "key_show": {"username": user},
        "key_generate": {"username": user},
        "key_import": {"username": user, "private_key": random.choice(("x", "A" * 43 + "=")), "force": True},
        "key_delete": {"username": user},
        "backup": {"force": False},
        "reload": {},
    }


def made(case: Case) -> str:
    return f"made-{case.random.randrange(MOST_NAMES)}"


def notification(case: Case) -> Any:
    random = case.random
    handle = random.randrange(8)
    what = random.randrange(3)
    if what == 0:
        payloads = [random.choice(("text", b"bytes", "", None, 5, b"x" * 1_000)) for _ in range(random.randrange(4))]
        options = random.choice(({}, {"max_age": 1.5}, {"max_age": -1}, {"else": 1}))
        return [2, "send", [handle, random.randrange(1, 20), payloads, options]]
    if what == 1:
        return [2, "ack", [handle, random.randrange(5)]]
    return [2, "credit", [handle, random.choice((0, 1, 10**6))]]


def frame(case: Case) -> bytes:
    """The next frame; sometimes none at all, but noise."""
    random = case.random
    if case.chance(0.02):
        return case.broken_msgpack()
    if case.chance(0.4):
        array = notification(case)
    else:
        name, params = random.choice(list(requests(case).items()))
        array = [0, random.randrange(2**32 - 1), name, [params]]
    if not case.chance(DAMAGED):
        return pack(array)
    if case.chance(0.07):
        return case.scramble(pack(array))
    if case.chance(0.03):
        return pack([*array[:-1], [Raw(bytes([0x91]) * random.choice((10, 20, 600))), 1]])
    return pack(case.damage(array))
