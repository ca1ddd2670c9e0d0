"""The library for programs without asyncio: the same objects, names and arguments, with calls that block.

    with Daemon() as daemon:
        connection = daemon.connect("alice", "com.example.chat@1.0.0")
        channel = connection.create_channel("main")
        channel.send("hello")
        for message in channel:
            print(message.data)

Every object may be used by several threads. Each call that waits takes a `timeout` in seconds (None: as long as it takes;
Ctrl-C interrupts it) and raises `TimeoutError` when it is over; what had been asked of the daemon may come about all the
same. A request that the daemon does not answer fails in any case after `request_timeout`. Besides the errors of the
asyncio library there are two: `RuntimeError` where a call would block a running event loop or the process was forked
since, `ConnectionLost` once the daemon object is closed.

Handlers run in threads of their own. Listeners run one after the other in one thread: they may call whatever they like,
while others wait for them.
"""

from __future__ import annotations

from rondevu_client.service import ServiceInfo
from rondevu_client.stream import Event
from rondevu_client.sync.channel import Channel, Message
from rondevu_client.sync.connection import Connection
from rondevu_client.sync.daemon import Daemon
from rondevu_client.sync.service import Service
from rondevu_client.sync.stream import EventStream

__all__ = ["Channel", "Connection", "Daemon", "Event", "EventStream", "Message", "Service", "ServiceInfo"]
