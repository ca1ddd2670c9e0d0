"""Whether WebRTC works where this process runs: two peer connections in it, a message there and back.

A restricted environment can keep a connection from coming up without anybody saying so (a handshake that fails in a
background task leaves it "connecting" for ever). So this makes one, and where that fails looks what is denied.
"""

from __future__ import annotations

import asyncio
import mmap
import socket
from collections.abc import Iterator

from rondevud.errors import SelfTestFailed, TransportError
from rondevud.transport.base import DataChannel, Engine, Message, PeerConnection

TIMEOUT = 20.0
"""Seconds after which a connection that has not come up will not."""

PROBE_TIMEOUT = 1.0
"""Seconds for a datagram to come back to the socket that sent it."""

_FAMILIES = ((socket.AF_INET, "AF_INET"), (socket.AF_NETLINK, "AF_NETLINK"))

SUSPECTS = "MemoryDenyWriteExecute=, RestrictAddressFamilies=, IPAddressDeny=, SystemCallFilter="


async def check_webrtc(engine: Engine, timeout: float = TIMEOUT) -> None:
    """Connect two peer connections of `engine` and pass a message to the other side and back.

    Raises `SelfTestFailed` when that has not happened after `timeout` seconds, naming what is denied here as far as it can
    be found. `engine` is usable afterwards.
    """
    near, far = None, None
    try:
        near, far = engine.create_peer_connection(), engine.create_peer_connection()
        async with asyncio.timeout(timeout):
            await _pass_message(near, far)
    except (TransportError, TimeoutError, OSError, MemoryError) as error:
        what = f"nothing came through in {timeout:.0f} s" if isinstance(error, TimeoutError) else repr(error)
        raise SelfTestFailed(
            "\n".join([f"the self-test failed: WebRTC does not work here: {what}", *advice(engine.name)])
        ) from error
    finally:
        for connection in (near, far):
            if connection is not None:
                await connection.close()


async def _pass_message(near: PeerConnection, far: PeerConnection) -> None:
    """Returns once the message has come back."""
    back: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
    kept: list[DataChannel] = []

    def echo(channel: DataChannel) -> None:
        kept.append(channel)
        channel.on_message = channel.send

    def take(message: Message) -> None:
        if not back.done():
            back.set_result(message)

    far.on_data_channel = echo
    channel = near.create_data_channel("self-test")
    channel.on_open = lambda: channel.send("self-test")
    channel.on_message = take
    await near.accept_answer(await far.create_answer(await near.create_offer()))
    await back


def advice(engine: str) -> list[str]:
    """What is denied to this process of the things WebRTC needs, a line each; the usual suspects where nothing is found."""
    # libdatachannel writes no machine code.
    probes = (_memory, _sockets, _datagrams) if engine == "aiortc" else (_sockets, _datagrams)
    found = [said for probe in probes for said in probe()]
    return found or [f"nothing that it needs is denied as such; look at the unit's {SUSPECTS}"]


def _memory() -> Iterator[str]:
    try:
        mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except OSError as error:
        yield (
            f"memory that can be written and executed is denied ({error.strerror}): MemoryDenyWriteExecute=yes, or "
            "the like; the handshake (DTLS) needs it"
        )


def _sockets() -> Iterator[str]:
    for family, name in _FAMILIES:
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
        except OSError as error:
            yield f"sockets of the family {name} are denied ({error.strerror}): RestrictAddressFamilies= must have it"


def _datagrams() -> Iterator[str]:
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(PROBE_TIMEOUT)
            sock.bind(("127.0.0.1", 0))
            sock.sendto(b"probe", sock.getsockname())
            sock.recv(16)
    except OSError as error:
        reason = "it does not come back" if isinstance(error, TimeoutError) else error.strerror
        yield f"no datagram can be sent to 127.0.0.1 ({reason}): IPAddressDeny=, a firewall, or a network without loopback"
