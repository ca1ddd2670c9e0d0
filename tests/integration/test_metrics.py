"""The metrics of daemons at work, as a scraper gets them."""

from __future__ import annotations

import asyncio
import re
import socket

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from rondevu_client import RequestRefused
from rondevud import measuring
from rondevud import metrics as metrics_module
from rondevud.metric_names import METRICS, TABLES, told
from tests.integration.daemons import FQN, PATIENCE, SCALE, open_pair, take
from tests.integration.test_reload import Filed, service
from tests.unit.test_monitoring import OF_THE_PROCESS

pytestmark = [pytest.mark.webrtc, pytest.mark.timeout(90 * SCALE)]

LOOPBACK = '[metrics]\nlisten = "127.0.0.1:0"\n'

STATUS = {
    "version": "info",
    "instance": "info",
    "engine": "info",
    "signalling": "info",
    "pid": None,  # of no use over time
    "uptime": "start_time_seconds",
    "services": "services",
    "connections": "connections",
    "connected": "connected",
    "clients": "clients",
    "tasks": "tasks",
    "closing": "engine_closing",
    "store": "store_ok",
    "store_bytes": "store_bytes",
    "max_store_bytes": "store_limit_bytes",
    "counters": "stray_channels_total",
    "engine_counters": "engine_incidents_total",
    "signalling_counters": "signalling_retries_total",
}
"""Keys of `status`, and where each is told."""

QUEUE = {
    "connection_id": None,
    "label": None,
    "state": None,
    "acknowledges": None,
    "durability": None,
    "queue_size": "outbox_messages",
    "queue_bytes": "outbox_bytes",
    "parked": "outbox_parked",
    "buffered_amount": "channel_buffered_bytes",
    "waiting": "inbox_messages",
    "waiting_bytes": "inbox_bytes",
    "failed": "set_aside_messages",
    "attached": "channel_attached",
    "producers": "channel_producers",
    "counters": "messages_accepted_total",
    "queue_age": "outbox_oldest_age_seconds",
    "waiting_age": "inbox_oldest_age_seconds",
    "totals": "channel_messages_total",
}
"""Keys of `queue`; None: a word, not a number."""


class Scraped:
    """One answer."""

    def __init__(self, text, parser=text_string_to_metric_families):
        self.text = text
        self.samples = {}
        for family in parser(text):
            for sample in family.samples:
                key = (sample.name.removeprefix("rondevud_"), frozenset(sample.labels.items()))
                assert key not in self.samples, f"{key} is there twice"
                self.samples[key] = sample.value

    def value(self, name, **labels):
        return self.samples[name, frozenset(labels.items())]

    def names(self):
        return {name for name, _ in self.samples}

    def sum(self, name, **labels):
        return sum(v for (n, had), v in self.samples.items() if n == name and labels.items() <= dict(had).items())


def serving(place):
    """What serves the metrics of a daemon."""
    return place.house._reloading.apply_metrics.__self__


def address(place):
    """Where a daemon serves."""
    return serving(place).address


async def connect(where):
    if where.startswith("unix:"):
        return await asyncio.open_unix_connection(where[5:])
    host, _, port = where.rpartition(":")
    return await asyncio.open_connection(host.strip("[]"), int(port))


async def ask(where, head="GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"):
    """Status line, headers and body."""
    async with asyncio.timeout(PATIENCE):
        reader, writer = await connect(where)
        writer.write(head.encode())
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *fields = head.decode().split("\r\n")
    return status, dict(field.split(": ", 1) for field in fields), body


async def scrape(place):
    status, fields, body = await ask(address(place))
    assert status == "HTTP/1.1 200 OK"
    assert fields["Content-Type"].startswith("text/plain; version=0.0.4")
    assert int(fields["Content-Length"]) == len(body)
    return Scraped(body.decode())


async def test_every_number_of_status_and_queue_is_served(world):
    pair = await open_pair(world, away=LOOPBACK + "[queue]\nmax_store_bytes = 1_000_000\n")
    await pair.near.send("taken")
    await take(pair.far, 1)
    await pair.near.flush()
    await pair.home.stop()
    await pair.near.send("waits")
    scraped = await scrape(pair.away)
    status, queue = await pair.visitor.status(), await pair.visitor.queue("chat", "main")
    assert status.keys() == STATUS.keys()
    assert queue.keys() == QUEUE.keys()
    for key, metric in {**STATUS, **QUEUE}.items():
        if metric is not None and key != "waiting_age":  # nothing waits for programs here
            assert metric in scraped.names(), f"{key} is not told"
    about = {"connection": "chat", "label": "main"}
    for counter, count in queue["counters"].items():
        where = told("channel", counter)
        assert scraped.value(where.metric, **about, **where.labels) == count, counter
    for fate, count in queue["totals"].items():
        assert scraped.value("channel_messages_total", **about, fate=fate) == count
    assert (scraped.value("outbox_messages", **about), scraped.value("outbox_bytes", **about)) == (1, 5)
    assert scraped.value("outbox_oldest_age_seconds", **about) >= 0
    assert scraped.value("store_limit_bytes") == 1_000_000
    for scope, table in TABLES.items():
        for counter in table:
            where = told(scope, counter)
            assert scope in {"channel", "service"} or (where.metric in scraped.names()), counter
    assert scraped.names() >= OF_THE_PROCESS


async def test_all_metrics_there_are_can_be_had(world):
    """From both sides of a link together, but for those that need a mishap."""
    pair = await open_pair(world, home=LOOPBACK, away=LOOPBACK)
    await pair.near.send("waits for nobody")
    await take(pair.far, 1)
    await pair.near.flush()
    await pair.far.detach()
    await pair.near.send("waits")
    await pair.near.flush()
    home, away = await scrape(pair.home), await scrape(pair.away)
    found = {re.sub("_(bucket|sum|count)$", "", name) for name in home.names() | away.names()}
    rare = {
        "other_total", "outbox_oldest_age_seconds", "store_limit_bytes", "service_peers_refused_total",
        "service_errors_total", "connection_round_trip_seconds",
    }  # fmt: skip
    assert METRICS.keys() - found <= rare
    assert home.value("service_connected", service=f"alice/{FQN}") == 1
    assert home.value("service_published", service=f"alice/{FQN}") == 1
    assert home.sum("inbox_messages") == 1
    assert (home.value("connected", kind="link"), away.value("connections", state="connected")) == (1, 1)
    target = {"connection": "chat", "service": "", "target": f"alice/{FQN}", "kind": "link"}
    assert away.value("connection_info", **target) == 1


async def test_latencies_are_those_of_the_messages(world):
    pair = await open_pair(world, home=LOOPBACK, away=LOOPBACK)
    for number in range(3):
        await pair.near.send(str(number))
    await take(pair.far, 3)
    await pair.near.flush()
    home, away = await scrape(pair.home), await scrape(pair.away)
    assert away.value("message_accept_seconds_count") == 3
    assert away.value("message_acknowledge_seconds_count") == 3
    assert home.value("message_delivery_seconds_count") == 3
    assert home.value("message_accept_seconds_count") == 0
    for scraped, name in ((away, "accept"), (away, "acknowledge"), (home, "delivery")):
        assert 0 < scraped.value(f"message_{name}_seconds_sum") < 3 * PATIENCE


async def test_a_bound_on_names_and_sums_over_all_that_never_fall(world, monkeypatch):
    monkeypatch.setattr(measuring, "MOST_CHANNELS", 2)
    pair = await open_pair(world, away=LOOPBACK)
    for label in ("one", "two", "three"):
        channel = await pair.connection.create_channel(label)
        await channel.send("x")
    scraped = await scrape(pair.away)
    named = {dict(labels)["label"] for name, labels in scraped.samples if name == "outbox_messages" and labels}
    assert named == {"main", "one"}
    assert scraped.value("channels_unlisted") == 2
    assert scraped.value("messages_accepted_total") == 2
    assert scraped.sum("messages_accepted_total") == 3
    await pair.connection.close(drain=0)
    after = await scrape(pair.away)
    assert after.value("channels") == 0
    assert after.value("messages_accepted_total") >= 2


async def test_openmetrics_is_spoken_to_who_asks_for_it(world):
    place = await world.daemon("home", LOOPBACK)
    head = "GET /metrics HTTP/1.1\r\naccept: application/openmetrics-text;version=1.0.0\r\n\r\n"
    status, fields, body = await ask(address(place), head)
    assert (status, body[-6:]) == ("HTTP/1.1 200 OK", b"# EOF\n")
    assert fields["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert Scraped(body.decode(), parse_openmetrics).value("store_ok") == 1


async def test_a_socket_has_the_rights_of_the_daemons_own_and_goes_with_it(world):
    path = world.directory / "m.sock"
    place = await world.daemon("home", f'[daemon]\nsocket_mode = "0660"\n[metrics]\nlisten = "unix:{path}"\n')
    assert path.stat().st_mode & 0o777 == 0o660
    assert (await scrape(place)).value("store_ok") == 1
    await place.stop()
    assert not path.exists()


async def test_nothing_is_served_unless_it_is_asked_for(world):
    place = await world.daemon("home")
    assert address(place) is None


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("POST /metrics HTTP/1.1\r\n\r\n", "405 Method Not Allowed"),
        ("GET /other HTTP/1.1\r\n\r\n", "404 Not Found"),
        ("nonsense\r\n\r\n", "400 Bad Request"),
        ("GET /metrics SMTP\r\n\r\n", "400 Bad Request"),
        (f"GET /metrics HTTP/1.1\r\nX: {'x' * 20_000}\r\n\r\n", "431 Request Header Fields Too Large"),
        ("GET / HTTP/1.1\r\n\r\n", "200 OK"),
        ("HEAD /metrics?x=1 HTTP/1.1\r\n\r\n", "200 OK"),
    ],
)
async def test_other_requests_are_answered_as_http_says(world, head, status):
    place = await world.daemon("home", LOOPBACK)
    answer, _, body = await ask(address(place), head)
    assert answer == f"HTTP/1.1 {status}"
    assert bool(body) == (not head.startswith("HEAD"))


async def test_who_says_nothing_is_let_go_and_too_many_are_refused(world, monkeypatch):
    monkeypatch.setattr(metrics_module, "MAX_CONNECTIONS", 2)
    place = await world.daemon("home", LOOPBACK)
    where = address(place)
    silent = [await connect(where) for _ in range(2)]
    async with asyncio.timeout(PATIENCE):
        reader, writer = await connect(where)
        assert await reader.read() == b""
        writer.close()
    for _, writer in silent:
        writer.close()
        await writer.wait_closed()
    measured = serving(place)._place
    async with asyncio.timeout(PATIENCE):
        while measured._serving:
            await asyncio.wait(set(measured._serving))
    assert (await scrape(place)).value("metrics_refused_total") == 1
    monkeypatch.setattr(metrics_module, "PATIENCE", 0.05)
    async with asyncio.timeout(PATIENCE):
        reader, writer = await connect(where)
        writer.write(b"GET /metrics")
        assert await reader.read() == b""
        writer.close()


async def test_a_store_that_hangs_is_not_waited_for(world, monkeypatch):
    pair = await open_pair(world, away=LOOPBACK)
    never = asyncio.Event()

    async def books(_channel):
        await never.wait()

    monkeypatch.setattr(measuring, "STORE_PATIENCE", 0.05)
    monkeypatch.setattr("rondevud.durable.channel.DurableChannel.books", books)
    for looks in (1, 2):
        scraped = await scrape(pair.away)
        assert scraped.value("metrics_incomplete_total") == looks
        assert "channel_messages_total" not in scraped.names()
    waiting = [task for task in asyncio.all_tasks() if task.get_name() == "metrics: accounts"]
    assert len(waiting) == 1, "the second look asked again"


async def test_a_reload_begins_moves_and_ends_the_serving(world):
    filed = Filed(world, world.place("home"))
    filed.write(service())
    await filed.start()
    path = world.directory / "m.sock"
    changes = await filed.reload(service() + f'[metrics]\nlisten = "unix:{path}"\n')
    assert (changes["changed"], changes["restart_needed"]) == (["metrics"], [])
    assert (await scrape(filed.place)).value("services") == 1
    assert (await filed.reload(service() + LOOPBACK))["changed"] == ["metrics"]
    assert not path.exists()
    where = address(filed.place)
    assert (await scrape(filed.place)).value("services") == 1
    assert (await filed.reload(service() + LOOPBACK))["changed"] == []
    assert address(filed.place) == where
    assert (await filed.reload(service()))["changed"] == ["metrics"]
    with pytest.raises(OSError, match=r".*"):
        await connect(where)


async def test_a_place_that_is_taken_changes_nothing_at_a_reload(world):
    filed = Filed(world, world.place("home"))
    filed.write(service() + LOOPBACK)
    await filed.start()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RequestRefused, match=r"metrics\.listen: cannot listen at") as refused:
            await filed.reload(f'[metrics]\nlisten = "127.0.0.1:{port}"\n')
    assert refused.value.code == "bad_config"
    assert (await scrape(filed.place)).value("services") == 1
