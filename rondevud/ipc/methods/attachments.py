"""Attaching to a channel and letting go of it."""

from __future__ import annotations

from typing import Any

from rondevu_client.messages import MAX_CREDIT, SEND_WINDOW
from rondevud import failpoints
from rondevud.errors import RequestError
from rondevud.events import Scope
from rondevud.ipc.handle import Handle
from rondevud.ipc.ports import Channel
from rondevud.ipc.session import Session
from rondevud.ipc.table import Answer, Table, binary, choice, flag, integer, mapping, text


async def attach(session: Session, params: dict[str, Any]) -> Answer:
    """Everything that can refuse comes before the first thing the client could notice; a refusal leaves nothing behind."""
    target, mode = params["target"], params["mode"]
    if target.startswith("service:") and mode != "observe":
        raise RequestError("bad_target", "a whole service can only be observed; attach to its connections one by one")
    failpoints.hit("attach.before")
    handle = session.new_handle(params)
    try:
        channel = await session.house.channel(target, params["label"], params["options"], create=mode != "observe")
        await _open(session, handle, channel, params)
        answer = _describe(handle, channel, params["producer"])
    except BaseException:
        handle.close()
        session.end_handle(handle.number)
        raise
    failpoints.hit("attach.after")
    return Answer(answer, lambda: handle.start(params["credit"]))


async def _open(session: Session, handle: Handle, channel: Channel, params: dict[str, Any]) -> None:
    mode, takeover = params["mode"], params["takeover"]
    handle.channel = channel
    if mode != "send":
        handle.receiver = await channel.open_receiver(mode, handle, takeover)
    if mode != "observe":
        session.sends_on(channel)
        handle.producer = await channel.open_producer(params["producer"], handle, takeover)
        if params["confirm_sent"]:
            handle.producer.confirm_sent()
        if params["threshold"] is not None:
            handle.threshold(params["threshold"], session.house.events)
    if handle.dead:
        raise RequestError("detached", "the channel was taken away while it was being attached")
    scope = session.house.resolve(params["target"])
    if not params["target"].startswith("service:"):
        scope = Scope(connection_id=channel.connection_id, label=channel.label)
    handle.feed.subscription = session.house.events.subscribe(scope, handle.event)


def _describe(handle: Handle, channel: Channel, name: bytes | None) -> dict[str, Any]:
    producer = handle.producer
    return {
        "handle": handle.number,
        "connection_id": channel.connection_id,
        "state": channel.state,
        "verdict": dict(channel.verdict(name)),
        "waiting": channel.waiting,
        "waiting_bytes": channel.waiting_bytes,
        "last_seq": producer.last_seq if producer else 0,
        "rejected": [list(item) for item in producer.rejected] if producer else [],
        "acknowledged_seq": producer.acknowledged_seq if producer else 0,
        "removed": producer.removed if producer else 0,
        "acknowledges": channel.acknowledges,
        "ephemeral": channel.ephemeral,
        "send_window": SEND_WINDOW,
        "max_message": channel.max_message,
    }


def threshold(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    handle = session.handles.get(params["handle"])
    if handle is None:
        raise RequestError("unknown_handle", f"there is no handle {params['handle']}")
    handle.threshold(params["bytes"], session.house.events)
    return {}


def detach(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    session.end_handle(params["handle"])
    return {}


async def close_channel(session: Session, params: dict[str, Any]) -> dict[str, Any]:
    return await session.house.close_channel(params["target"], params["label"])


def register(table: Table) -> None:
    table.method(
        "attach",
        "Attach to a channel, made where there is none.",
        target=text(required=True),
        label=text(required=True),
        mode=choice("exclusive", "shared", "observe", "send", default="exclusive"),
        takeover=flag(),
        producer=binary(1, 64),
        credit=integer(0, MAX_CREDIT, default=0),
        acknowledged=flag(),
        confirm_sent=flag(),
        threshold=integer(0, 2**63 - 1),
        options=mapping(),
    )(attach)
    table.method(
        "threshold",
        "Say with buffered_amount_low when so little is under way.",
        handle=integer(1, 2**63 - 1, required=True),
        bytes=integer(0, 2**63 - 1, required=True),
    )(threshold)
    table.method("detach", "Let go of a handle.", handle=integer(1, 2**63 - 1, required=True))(detach)
    table.method("close_channel", "End a label for both sides.", target=text(required=True), label=text(required=True))(
        close_channel
    )
