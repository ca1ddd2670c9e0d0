"""Changes of this machine's addresses, default routes and cables, as the kernel tells them (rtnetlink(7)).

A link whose path has changed stays silent for seconds before anybody notices; the kernel knows at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import ipaddress
import logging
import socket
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

logger = logging.getLogger(__name__)

SETTLE = 0.3
"""Seconds in which changes are gathered: they come in groups."""

GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE."""

NLMSG_DONE = 3
RTM_NEWLINK, RTM_DELLINK = 16, 17
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22
RTM_NEWROUTE, RTM_DELROUTE = 24, 25
NLM_F_REQUEST, NLM_F_DUMP = 0x1, 0x300
IFA_ADDRESS, IFA_LOCAL, IFA_F_TENTATIVE = 1, 2, 0x40
IFF_LOWER_UP = 0x10000
RT_TABLE_MAIN = 254

HEADER = struct.Struct("=LHHLL")
INTERFACE = struct.Struct("=BxHiLL")
ADDRESS = struct.Struct("=BBBBL")
ROUTE = struct.Struct("=BBBBBBBBL")
ATTRIBUTE = struct.Struct("=HH")


@dataclass(slots=True)
class Change:
    """What changed since the last one."""

    added: set[str] = field(default_factory=set)
    """Addresses, as text."""
    removed: set[str] = field(default_factory=set)
    routes: bool = False
    """Whether a default route came or went, or the carrier of an interface with an address came back."""

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.routes)


class Addresses:
    """Follows the messages of the kernel (sans-I/O).

    Link-local and loopback addresses are none of a link's: every container's interface brings one.
    """

    def __init__(self) -> None:
        self.known: set[str] = set()
        self._interfaces: dict[str, int] = {}
        """The numbers of the interfaces that have them."""
        self._carriers: dict[int, bool] = {}
        """Which of the interfaces have a carrier, as far as was told: of what never changed, nothing is."""
        self._listed = False
        """Whether the kernel has told all that there was at the beginning."""
        self._listing: set[str] | None = set()
        """What the list under way has told so far; None while there is none."""

    @property
    def listing(self) -> bool:
        """Whether the kernel has not finished telling what there is."""
        return self._listing is not None

    def list_again(self) -> None:
        """Changes were missed, and the kernel tells anew what there is: what it leaves out has gone."""
        self._listing = set()

    def take(self, data: bytes, change: Change) -> None:
        """Add what one datagram says to `change`. What is not understood is passed over."""
        for kind, body in _messages(data):
            if kind == NLMSG_DONE:
                self._end_list(change)
            with contextlib.suppress(struct.error, ValueError):
                if kind in {RTM_NEWADDR, RTM_DELADDR}:
                    self._address(kind, body, change if self._listed else Change())
                elif kind in {RTM_NEWROUTE, RTM_DELROUTE}:
                    change.routes |= _is_default(body)
                elif kind in {RTM_NEWLINK, RTM_DELLINK}:
                    change.routes |= self._carrier_is_back(kind, body)

    def _carrier_is_back(self, kind: int, body: bytes) -> bool:
        """Whether an interface that has an address has its carrier again: a pulled cable changes no address."""
        _family, _type, index, flags, _changed = INTERFACE.unpack_from(body)
        if kind == RTM_DELLINK:
            self._carriers.pop(index, None)
            return False
        carrier = bool(flags & IFF_LOWER_UP)
        had = self._carriers.get(index, True)
        self._carriers[index] = carrier
        return carrier and not had and index in self._interfaces.values()

    def _address(self, kind: int, body: bytes, change: Change) -> None:
        _family, _prefix, flags, _scope, index = ADDRESS.unpack_from(body)
        attributes = dict(_attributes(body[ADDRESS.size :]))
        found = attributes.get(IFA_LOCAL) or attributes.get(IFA_ADDRESS)
        if found is None:
            return
        ip = ipaddress.ip_address(found)
        if ip.is_link_local or ip.is_loopback:
            return
        if kind == RTM_DELADDR:
            self._gone(str(ip), change)
        elif not flags & IFA_F_TENTATIVE:  # told again when it has proved to be free
            self._interfaces[str(ip)] = index
            self._there(str(ip), change)

    def _there(self, address: str, change: Change) -> None:
        if self._listing is not None:
            self._listing.add(address)
        if address not in self.known:
            self.known.add(address)
            change.added.add(address)
            change.removed.discard(address)

    def _gone(self, address: str, change: Change) -> None:
        if self._listing is not None:
            self._listing.discard(address)
        self._interfaces.pop(address, None)
        if address in self.known:
            self.known.discard(address)
            change.removed.add(address)
            change.added.discard(address)

    def _end_list(self, change: Change) -> None:
        self._listed = True
        listed, self._listing = self._listing, None
        if listed is not None:
            for address in self.known - listed:
                self._gone(address, change)


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= HEADER.size:
        length, kind, _flags, _seq, _pid = HEADER.unpack_from(data)
        if not HEADER.size <= length <= len(data):
            return
        yield kind, data[HEADER.size : length]
        data = data[_aligned(length) :]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= ATTRIBUTE.size:
        length, kind = ATTRIBUTE.unpack_from(data)
        if not ATTRIBUTE.size <= length <= len(data):
            return
        yield kind, data[ATTRIBUTE.size : length]
        data = data[_aligned(length) :]


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def _is_default(body: bytes) -> bool:
    _family, prefix, _source, _tos, table, _protocol, _scope, _type, _flags = ROUTE.unpack_from(body)
    return bool(prefix == 0 and table == RT_TABLE_MAIN)


def _ask_for_list(watch: socket.socket) -> None:
    request = ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
    watch.send(HEADER.pack(HEADER.size + len(request), RTM_GETADDR, NLM_F_REQUEST | NLM_F_DUMP, 1, 0) + request)


class NetworkWatch:
    """Tells `changed` of every change; what there was at the beginning is none."""

    def __init__(self, changed: Callable[[Change], None]) -> None:
        self._changed = changed
        self._addresses = Addresses()
        self._change = Change()
        self._socket: socket.socket | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._missed = False
        """Whether the kernel is to be asked once more for what there is."""

    def start(self) -> None:
        """Ask for what there is, then listen. A kernel that tells nothing is logged; all goes on without."""
        try:
            watch = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            watch.setblocking(False)
            watch.bind((0, GROUPS))
            _ask_for_list(watch)
        except OSError as error:
            logger.warning("Changes of the network are noticed late: no netlink socket: %s", error)
            return
        self._socket = watch
        asyncio.get_running_loop().add_reader(watch, self._read, watch)

    def stop(self) -> None:
        """Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._socket is not None:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()
            self._socket = None

    def _read(self, watch: socket.socket) -> None:
        while True:
            try:
                data = watch.recv(65_536)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    logger.warning("Changes of the network are noticed late from now on: %s", error)
                    self.stop()
                    return
                logger.info("Changes of the network came faster than they were read; asking for what there is")
                self._missed = True
                self._change.routes = True
                continue
            self._addresses.take(data, self._change)
        if self._missed and not self._addresses.listing:  # one list at a time: the kernel refuses another
            self._list_again(watch)
        if self._change and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(SETTLE, self._tell)

    def _list_again(self, watch: socket.socket) -> None:
        self._missed = False
        try:
            _ask_for_list(watch)
        except OSError as error:
            logger.warning("Changes of the network were missed: %s", error)
        else:
            self._addresses.list_again()

    def _tell(self) -> None:
        self._timer = None
        change, self._change = self._change, Change()
        logger.info(
            "The network changed: new %s, gone %s%s",
            sorted(change.added),
            sorted(change.removed),
            "; other routes, or a carrier is back" if change.routes else "",
        )
        self._changed(change)
