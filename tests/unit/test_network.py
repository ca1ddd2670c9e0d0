"""What the kernel tells of addresses and routes: read from bytes, and once from a real kernel in a network of its own."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rondevud import network
from rondevud.network import Addresses, Change

DONE = network.HEADER.pack(network.HEADER.size, network.NLMSG_DONE, 0, 1, 0)


def attribute(kind: int, value: bytes) -> bytes:
    packed = network.ATTRIBUTE.pack(network.ATTRIBUTE.size + len(value), kind) + value
    return packed + bytes(-len(packed) % 4)


def message(kind: int, body: bytes) -> bytes:
    return network.HEADER.pack(network.HEADER.size + len(body), kind, 0, 0, 0) + body


def address(text: str, *, gone: bool = False, flags: int = 0) -> bytes:
    packed = ipaddress.ip_address(text).packed
    body = network.ADDRESS.pack(2 if len(packed) == 4 else 10, 24, flags, 0, 1)
    kind = network.RTM_DELADDR if gone else network.RTM_NEWADDR
    return message(kind, body + attribute(network.IFA_ADDRESS, packed) + attribute(99, b"odd"))


def route(prefix: int, *, table: int = network.RT_TABLE_MAIN, gone: bool = False) -> bytes:
    kind = network.RTM_DELROUTE if gone else network.RTM_NEWROUTE
    return message(kind, network.ROUTE.pack(2, prefix, 0, 0, table, 0, 0, 1, 0))


def interface(index: int, *, carrier: bool, gone: bool = False) -> bytes:
    flags = network.IFF_LOWER_UP if carrier else 0
    kind = network.RTM_DELLINK if gone else network.RTM_NEWLINK
    return message(kind, network.INTERFACE.pack(0, 1, index, flags, 0) + attribute(3, b"eth0\0"))


def take(*data: bytes, addresses: Addresses | None = None) -> Change:
    change, addresses = Change(), addresses or Addresses()
    for each in data:
        addresses.take(each, change)
    return change


def test_what_there_was_at_the_beginning_is_no_change():
    assert not take(address("192.0.2.1") + address("2001:db8::1"), DONE)


def test_addresses_come_and_go():
    addresses = Addresses()
    assert take(address("192.0.2.1"), DONE, address("192.0.2.2"), addresses=addresses).added == {"192.0.2.2"}
    change = take(address("192.0.2.1", gone=True) + address("2001:db8::1"), addresses=addresses)
    assert (change.added, change.removed) == ({"2001:db8::1"}, {"192.0.2.1"})


def test_an_address_that_is_told_again_or_comes_back_at_once_is_no_change():
    assert not take(address("192.0.2.1"), DONE, address("192.0.2.1"))
    back = take(address("192.0.2.1"), DONE, address("192.0.2.1", gone=True), address("192.0.2.1"))
    assert (back.added, back.removed) == ({"192.0.2.1"}, set())


def test_an_address_counts_when_it_has_proved_to_be_free():
    tentative = address("2001:db8::1", flags=network.IFA_F_TENTATIVE)
    assert not take(DONE, tentative)
    assert take(DONE, tentative, address("2001:db8::1")).added == {"2001:db8::1"}


@pytest.mark.parametrize("gone", [False, True])
def test_default_routes_count_and_others_do_not(gone):
    assert take(DONE, route(0, gone=gone)).routes
    assert not take(DONE, route(24, gone=gone), route(0, table=255, gone=gone))


def test_a_carrier_that_comes_back_counts_as_other_routes():
    addresses = Addresses()
    take(address("192.0.2.1"), DONE, addresses=addresses)
    assert not take(interface(1, carrier=True), addresses=addresses)  # told for another reason
    assert not take(interface(1, carrier=False), addresses=addresses)
    assert take(interface(1, carrier=True), addresses=addresses).routes
    assert not take(interface(1, carrier=True), addresses=addresses)


@pytest.mark.parametrize(
    "before",
    [
        [],
        [address("169.254.3.4")],
        [address("192.0.2.1"), address("192.0.2.1", gone=True)],
        [address("192.0.2.1"), interface(1, carrier=False), interface(1, carrier=False, gone=True)],
    ],
)
def test_a_carrier_counts_where_there_is_an_address_and_it_had_gone(before):
    addresses = Addresses()
    take(DONE, *before, addresses=addresses)
    if before[-1:] != [interface(1, carrier=False, gone=True)]:
        take(interface(1, carrier=False), addresses=addresses)
    assert not take(interface(1, carrier=True), addresses=addresses)


@pytest.mark.parametrize("text", ["fe80::1", "169.254.3.4", "::1", "127.0.0.7"])
def test_link_local_and_loopback_addresses_are_passed_over(text):
    addresses = Addresses()
    assert not take(DONE, address(text), address(text, gone=True), addresses=addresses)
    assert not addresses.known


def test_what_a_second_list_leaves_out_has_gone_and_what_it_adds_is_new():
    addresses = Addresses()
    take(address("192.0.2.1") + address("192.0.2.2"), DONE, addresses=addresses)
    addresses.list_again()
    change = take(
        address("192.0.2.2") + address("192.0.2.3") + address("192.0.2.4"),
        address("192.0.2.3", gone=True),
        DONE,
        addresses=addresses,
    )
    assert (change.added, change.removed) == ({"192.0.2.4"}, {"192.0.2.1", "192.0.2.3"})


@given(st.binary(max_size=200))
def test_nothing_in_a_datagram_does_harm(data):
    take(
        DONE,
        data,
        address("192.0.2.1") + data,
        *(message(kind, data) for kind in (network.RTM_NEWADDR, network.RTM_NEWROUTE, network.RTM_NEWLINK)),
    )


REAL = """
import asyncio, fcntl, socket, struct
from rondevud.network import NetworkWatch

SIOCSIFFLAGS, SIOCSIFADDR = 0x8914, 0x8916
UP = 1

def give(address):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        name = struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(control, SIOCSIFADDR, name)

def switch(flags):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags))

async def main():
    changes = asyncio.Queue()
    watch = NetworkWatch(changes.put_nowait)
    watch.start()
    for address in ("192.0.2.7", "192.0.2.8"):
        give(address)
        change = await asyncio.wait_for(changes.get(), 20)
        print(sorted(change.added), sorted(change.removed))
    watch._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
    for last in range(9, 100):  # nothing is read meanwhile: most of it is lost
        give(f"192.0.2.{last}")
    added, removed = set(), set()
    while "192.0.2.99" not in added or "192.0.2.8" not in removed:
        change = await asyncio.wait_for(changes.get(), 20)
        added |= change.added
        removed |= change.removed
    print(sorted(watch._addresses.known))
    switch(UP)
    switch(0)
    switch(UP)
    while not (change := await asyncio.wait_for(changes.get(), 20)).routes:
        pass
    print(change.routes)
    watch.stop()
    watch.stop()

asyncio.run(main())
"""


def test_a_real_kernel_is_understood():
    command = ["unshare", "--user", "--map-root-user", "--net", sys.executable, "-c", textwrap.dedent(REAL)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=False)
    assert done.stdout.splitlines() == [
        "['192.0.2.7'] []",
        "['192.0.2.8'] ['192.0.2.7']",
        "['192.0.2.99']",
        "True",
    ], done.stderr
