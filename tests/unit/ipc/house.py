"""A daemon without links and stores: what the socket sees of one, in lists that outlive a stop and a start."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from rondevud.access import Subject
from rondevud.durable.buffer_watch import BufferWatch
from rondevud.errors import RequestError
from rondevud.events import EventBus, Scope


@dataclass
class Row:
    payload: object
    id: str
    attempt: int = 1
    gap: dict | None = None


@dataclass
class Books:
    """What is kept of a producer."""

    last_seq: int = 0
    rejected: list = field(default_factory=list)
    acknowledged_seq: int = 0
    removed: int = 0


@dataclass
class Stored:
    """What is kept of a channel."""

    outbox: list = field(default_factory=list)
    inbox: list = field(default_factory=list)
    producers: dict = field(default_factory=dict)
    asked: bool = False


@dataclass
class Disk:
    """What survives a restart."""

    connections: dict = field(default_factory=dict)
    services: dict = field(default_factory=dict)
    channels: dict = field(default_factory=dict)
    received: int = 0


class MemoryProducer:
    def __init__(self, channel, name, listener):
        self.channel = channel
        self.name = name
        self.listener = listener
        self.closed = False
        self.books = channel.stored.producers.setdefault(name, Books()) if name else Books()
        self.parked = []
        self.frames = 0
        self.confirms_sent = False

    last_seq = property(lambda self: self.books.last_seq)
    rejected = property(lambda self: self.books.rejected)
    acknowledged_seq = property(lambda self: self.books.acknowledged_seq)
    removed = property(lambda self: self.books.removed)

    def send(self, first_seq, payloads, max_age):
        self.frames += 1
        self.parked += [(seq, payload, max_age) for seq, payload in enumerate(payloads, first_seq)]
        self.channel.house.changed.set()
        if not self.channel.hold:
            asyncio.get_running_loop().call_soon(self.decide)

    def reject(self, first_seq, count, code, message):
        for seq in range(first_seq, first_seq + count):
            if not self.closed:
                self.listener.rejected(seq, code, message)
            self.parked.append((seq, None, code))
        if not self.channel.hold:
            asyncio.get_running_loop().call_soon(self.decide)

    def decide(self):
        """Store what is parked; say so, unless the channel is mute."""
        if self.closed:
            return
        upto = 0
        for seq, payload, more in sorted(self.parked, key=lambda item: item[0]):
            upto = max(upto, seq)
            known = dict(self.books.rejected).get(seq)
            if seq <= self.books.last_seq:
                if known and not self.channel.mute:
                    self.listener.rejected(seq, known, "as before")
                continue
            self.books.last_seq = seq
            if payload is None:
                self.books.rejected.append((seq, more))
            elif payload in self.channel.refused:
                self.books.rejected.append((seq, "queue_full"))
                if not self.channel.mute:
                    self.listener.rejected(seq, "queue_full", "the outbox is full")
            else:
                self.channel.stored.outbox.append((seq, payload, more))
        self.parked.clear()
        if upto and not self.channel.mute:
            self.listener.accepted(upto)

    def confirm_sent(self):
        self.confirms_sent = True

    def hand_over(self, upto):
        if self.confirms_sent and not self.closed:
            self.listener.sent(upto)

    def acknowledge(self, upto):
        self.books.acknowledged_seq = upto
        if not self.closed:
            self.listener.acknowledged(upto)

    def remove(self, first, last, reason):
        self.books.removed += last - first + 1
        if not self.closed:
            self.listener.removed(first, last, reason)

    def close(self):
        self.closed = True
        if self.channel.producers.get(self.name) is self:
            del self.channel.producers[self.name]


class MemoryReceiver:
    def __init__(self, channel, listener, mode):
        self.channel = channel
        self.listener = listener
        self.mode = mode
        self.credits = 0
        self.paused = False
        self.closed = False
        self.last_tag = 0
        self.unacknowledged = []
        self.next = 0
        self.acked = []

    def credit(self, n):
        self.credits += n
        self.pump()

    def ack(self, upto_tag):
        self.acked.append(upto_tag)
        done = [row for tag, row in self.unacknowledged if tag <= upto_tag]
        self.unacknowledged = [(tag, row) for tag, row in self.unacknowledged if tag > upto_tag]
        for row in done:
            self.channel.stored.inbox.remove(row)
            self.next -= 1
        self.channel.house.changed.set()

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False
        self.pump()

    def pump(self):
        rows = self.channel.stored.inbox
        while (
            self.mode == "exclusive" and self.credits and not self.paused and not self.closed and self.next < len(rows)
        ):
            row = rows[self.next]
            self.next += 1
            self.credits -= 1
            self.last_tag += 1
            self.unacknowledged.append((self.last_tag, row))
            if row.gap is not None:
                self.listener.gap(self.last_tag, row.gap)
            else:
                self.listener.messages(self.last_tag, [[row.payload, row.id, 1_700_000_000.5, row.attempt]])

    def copy(self, row):
        if self.credits and not self.paused:
            self.credits -= 1
            self.last_tag += 1
            self.listener.messages(self.last_tag, [[row.payload, row.id, 1_700_000_000.5, row.attempt]])
        else:
            self.listener.missed(1)

    def close(self):
        if self.closed:
            return
        self.closed = True
        for _, row in self.unacknowledged:
            row.attempt += 1
        if self in self.channel.observers:
            self.channel.observers.remove(self)
        if self.channel.receiver is self:
            self.channel.receiver = None
            self.channel.offer()


class MemoryChannel:
    max_message = 1024 * 1024

    def __init__(self, house, connection_id, label, stored):
        self.house = house
        self.connection_id = connection_id
        self.label = label
        self.stored = stored
        self.state = "open"
        self.acknowledges = True
        self.ephemeral = house.disk.connections[connection_id].get("ephemeral", False)
        self.producers = {}
        self.receiver = None
        self.observers = []
        self.hold = False
        self.mute = False
        self.refused = set()
        self.watches = []

    def watch_buffer(self, threshold, heard):
        self.watches.append(BufferWatch(threshold, heard, self.watches.remove))
        return self.watches[-1]

    queue_bytes = property(lambda self: sum(len(payload) for _, payload, _ in self.stored.outbox))
    waiting = property(lambda self: len(self.stored.inbox))
    waiting_bytes = property(lambda self: sum(len(row.payload) for row in self.stored.inbox))

    def verdict(self, _producer):
        word = "resumed" if self.stored.asked else "new"
        self.stored.asked = True
        return {"in": word, "out": word}

    async def open_producer(self, name, listener, takeover):
        old = self.producers.get(name)
        if old is not None and name is not None:
            if not takeover:
                raise RequestError("producer_in_use", "that producer has a live handle here")
            old.close()
            old.listener.detached("taken_over")
        producer = self.producers[name] = MemoryProducer(self, name, listener)
        self.house.changed.set()
        return producer

    async def open_receiver(self, mode, listener, takeover):
        receiver = MemoryReceiver(self, listener, mode)
        if mode == "observe":
            self.observers.append(receiver)
            return receiver
        if self.receiver is not None:
            if not takeover:
                raise RequestError("in_use", f"{self.label} has a receiver already")
            old = self.receiver
            old.close()
            old.listener.detached("taken_over")
        self.receiver = receiver
        self.house.changed.set()
        return receiver

    # what a test does

    def deliver(self, *payloads, gap=None):
        """Messages of the peer, or a gap."""
        for payload in payloads or [""]:
            self.house.disk.received += 1
            row = Row(payload, f"00ff-{self.house.disk.received}", gap=gap)
            self.stored.inbox.append(row)
            for observer in list(self.observers):
                observer.copy(row)
            if self.receiver is not None:
                self.receiver.pump()
            else:
                self.offer()

    def offer(self):
        if self.stored.inbox:
            self.house.publish("channel", {"waiting": self.waiting}, self)

    def close_by_peer(self):
        self.house.channels_by_key.pop((self.connection_id, self.label))
        self.house.disk.channels.pop((self.connection_id, self.label))
        for half in [self.receiver, *self.observers, *self.producers.values()]:
            if half is not None:
                half.listener.detached("closed")

    def release(self):
        """Decide everything that was held."""
        self.hold = False
        for producer in list(self.producers.values()):
            producer.decide()

    @property
    def producer(self):
        (producer,) = self.producers.values()
        return producer


class MemoryHouse:
    """One start of the daemon over `disk`."""

    version = "0.1.0"

    def __init__(self, disk=None, instance="first"):
        self.disk = disk or Disk()
        self.instance = instance
        self.events = EventBus()
        self.channels_by_key = {}
        self.gone = []
        self.changed = asyncio.Event()
        self.claims = []
        self.forever = asyncio.Event()

    async def until(self, condition):
        """Wait until `condition` holds, looked at when anything changes here."""
        while not condition():
            self.changed.clear()
            await self.changed.wait()

    def publish(self, name, data, channel):
        row = self.disk.connections[channel.connection_id]
        subject = {"service": row.get("service"), "connection_id": channel.connection_id, "label": channel.label}
        self.events.publish(name, data, **subject)

    def add_connection(self, connection_id, name, service=None):
        self.disk.connections[connection_id] = {"name": name, "service": service, "state": "connected"}
        if service:
            data = {"peer_name": name, "kind": "link"}
            self.events.publish("connection", data, service=service, connection_id=connection_id)

    def get(self, connection_id, label):
        """A channel, for tests; made when there is none."""
        key = (connection_id, label)
        if key not in self.channels_by_key:
            stored = self.disk.channels.setdefault(key, Stored())
            self.channels_by_key[key] = MemoryChannel(self, connection_id, label, stored)
        return self.channels_by_key[key]

    def find(self, target):
        for connection_id, row in self.disk.connections.items():
            if target in {connection_id, row["name"]}:
                return connection_id
        raise RequestError("unknown_target", f"there is no connection {target!r}")

    async def status(self):
        return {"version": self.version, "connections": len(self.disk.connections)}

    def services(self):
        facts = {"service_id": "service-1", "uuid": "uuid-1", "expires_at": 2.5, "pool_size": 1}
        pairs = [name.split("/") for name in self.disk.services]
        return [{"service": "/".join(pair), "username": pair[0], "fqn": pair[1], **facts} for pair in pairs]

    def connections(self):
        return self.snapshot(None)

    def channels(self, target):
        (row,) = self.snapshot(target)
        return row["channels"]

    async def claim(self, username):
        self.claims.append(username)
        return {"username": username}

    async def check(self, username):
        return {"username": username, "available": username not in self.claims}

    async def expose(self, username, fqn, options, ephemeral, owner):
        name = f"{username}/{fqn}"
        created = name not in self.disk.services
        if not created and self.disk.services[name] != options:
            raise RequestError("conflict", "it is declared with other options", {"options": sorted(options)})
        self.disk.services[name] = options
        return {"service_id": "service-1", "uuid": "uuid-1", "expires_at": 1.5, "created": created}

    async def withdraw(self, username, fqn, drain, keep_connections):
        name = f"{username}/{fqn}"
        if self.disk.services.pop(name, None) is None:
            raise RequestError("unknown_target", f"there is no service {name}")
        self.events.publish("closed", service=name)
        return {}

    async def connect(self, *, username, fqn, uuid, name, options, ephemeral, owner):
        name = name or (f"{username}/{fqn}" if fqn else f"uuid/{uuid}")
        connection_id = f"conn-{len(self.disk.connections) + 1:016x}"
        try:
            connection_id = self.find(name)
            created = False
        except RequestError:
            self.add_connection(connection_id, name)
            self.disk.connections[connection_id]["ephemeral"] = ephemeral
            created = True
        return {"connection_id": connection_id, "name": name, "state": "connecting", "created": created}

    async def close(self, target, drain):
        connection_id = self.find(target)
        del self.disk.connections[connection_id]
        self.events.publish("closed", {"by": "local"}, connection_id=connection_id)
        return {"drain": drain}

    async def reconnect(self, target):
        raise RuntimeError("a bug of the daemon")

    async def wait(self, target, what, timeout):
        async with asyncio.timeout(timeout):
            await self.forever.wait()
        return {}

    async def why(self, target):
        return {"target": target, "why": "because"}

    def snapshot(self, target):
        scope = self.resolve(target) if target else Scope()
        return [
            {
                "connection_id": connection_id,
                "name": row["name"],
                "state": row["state"],
                "peer_name": "",
                "kind": "link",
                "channels": [
                    self.row(owner, label, len(stored.inbox))
                    for (owner, label), stored in self.disk.channels.items()
                    if owner == connection_id
                ],
            }
            for connection_id, row in self.disk.connections.items()
            if scope.connection_id in {None, connection_id} and scope.service in {None, row["service"]}
        ]

    def row(self, connection_id, label, waiting):
        channel = self.channels_by_key.get((connection_id, label))
        state, acknowledges = (channel.state, channel.acknowledges) if channel else ("open", None)
        return {"label": label, "state": state, "acknowledges": acknowledges, "waiting": waiting, "attached": 0}

    async def channel(self, target, label, options, create):
        connection_id = self.find(target)
        if not create and (connection_id, label) not in self.disk.channels:
            raise RequestError("unknown_channel", f"{target} has no channel {label!r}")
        return self.get(connection_id, label)

    async def close_channel(self, target, label):
        self.get(self.find(target), label).close_by_peer()
        return {}

    async def queue(self, target, label):
        stored = self.get(self.find(target), label).stored
        return {"queue_size": len(stored.outbox), "queue_bytes": 0, "buffered_amount": 0, "waiting": len(stored.inbox)}

    async def purge(self, target, label, direction, id_):
        return {"direction": direction} | ({} if id_ is None else {"id": id_})

    async def failed(self, target, label, most):
        row = {"attempts": 3, "size": 100, "text": True, "head": b"poison", "enqueued_at": 1.0, "failed_at": 2.0}
        return [{"id": f"ep-{number}", **row} for number in range(1, min(most, 2) + 1)]

    async def put_back(self, target, label, id_):
        return {"put_back": 2 if id_ is None else 1}

    def subject(self, target):
        if target.startswith("service:"):
            return Subject(service=target[8:])
        try:
            row = self.disk.connections[self.find(target)]
        except RequestError:
            return None
        return Subject(service=row["service"]) if row["service"] else Subject(connection=row["name"])

    def resolve(self, target):
        if target.startswith("service:"):
            name = target.removeprefix("service:")
            if name not in self.disk.services:
                raise RequestError("unknown_target", f"there is no service {name}")
            return Scope(service=name)
        return Scope(connection_id=self.find(target))

    def owner_gone(self, owner):
        self.gone.append(owner)
        self.changed.set()
