"""docs/seed-parity.md names nothing that is not there: no test, attribute, event, method, key, command or default."""

from __future__ import annotations

import ast
import functools
import math
import re
from pathlib import Path
from typing import Any

import click
import pytest

import rondevu_client
from rondevud import backoff, config
from rondevud.ctl.main import main as rondevuctl
from rondevud.durable.states import ChannelState, ConnectionState
from rondevud.ipc.methods import TABLE
from rondevud.rendezvous.app import ROUTES
from rondevud.signalling.base import ServicePublisher, Signalling
from tests.unit.vectors import rows, sections

TESTS = Path(__file__).parents[1]
SECTIONS = sections("seed-parity.md")
DOCUMENT = SECTIONS["The names of the Rondevu JavaScript client 0.9.0, and ours"]
SECTION_OF = {
    "queue": config.QueueConfig,
    "reconnect": config.ReconnectConfig,
    "transport": config.TransportConfig,
    "signalling": config.SignallingConfig,
    "[service]": config.ServiceConfig,
    "[connection]": config.ConnectionConfig,
}
RECONNECT = config.resolve_reconnect(config.ReconnectConfig(), in_file=False)
PLAIN_QUEUE = config.queue_limits(config.QueueConfig(), plain=True)
RESOLVED = {
    "[reconnect] max_attempts": RECONNECT.attempts_until_contact,
    "[queue] max_queue_size": PLAIN_QUEUE.max_count,
    "[queue] max_message_age": PLAIN_QUEUE.max_age,
}
"""Defaults that depend on what they are for; the seed's hold where there is no link with durability ``disk``."""

NAMES = rows(DOCUMENT, "seed")
OPTIONS = [row for row in NAMES if len(row) == 5]
FAULTS = rows(SECTIONS["Faults of the seed"], "fault")
ROWS = [*NAMES, *FAULTS]


def name_of(row: list[str]) -> str:
    return row[0].strip("`")


# --- the table -------------------------------------------------------------------------------------------------------


def test_no_cell_is_empty():
    assert not [row for row in ROWS if len(row) not in {3, 5} or not all(row)]


def test_every_fault_has_a_row():
    numbers = {int(re.match(r"\d+", row[0])[0]) for row in FAULTS}
    assert numbers == set(range(1, 12))


def test_every_name_is_matched_or_said_to_be_superseded():
    """Ours is something that is checked below, unless the seed's name stands for nothing a program does here."""
    named = re.compile(
        r"superseded: |\b(event|method|key|state|answered at) `|`rondevuctl|`[A-Z]\w+(\.\w+)?`|`backoff\."
    )
    assert not [name_of(row) for row in NAMES if not named.search(ours_of(row))]


def ours_of(row: list[str]) -> str:
    """The cell as it is written, with the backquotes that a cell of one name had."""
    ours = row[2] if len(row) == 5 else row[1]
    return ours if "`" in ours else f"`{ours}`" if re.fullmatch(r"[A-Z]\w+(\.\w+)?|backoff\.\w+", ours) else ours


# --- tests -----------------------------------------------------------------------------------------------------------


@functools.cache
def defined_in(path: Path) -> set[str]:
    """``test_name`` and ``Class::test_name`` of a file."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        inner = node.body if isinstance(node, ast.ClassDef) else [node]
        prefix = f"{node.name}::" if isinstance(node, ast.ClassDef) else ""
        functions = [each for each in inner if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
        found |= {prefix + each.name for each in functions if each.name.startswith("test_")}
    return found


@pytest.mark.parametrize("row", ROWS, ids=name_of)
def test_the_test_of_a_row_exists(row):
    path, _, test = row[-1].partition("::")
    assert test in defined_in(TESTS / path)


# --- names of ours ---------------------------------------------------------------------------------------------------


def spans(pattern: str) -> set[str]:
    """What stands between backquotes behind certain words, in the cells of ours."""
    return {found for row in NAMES for found in re.findall(pattern, ours_of(row))}


def attributes_of(owner: type) -> set[str]:
    """Of the class, and those that its constructor sets."""
    found = set(dir(owner))
    for parent in owner.__mro__:
        init = parent.__dict__.get("__init__")
        code = getattr(init, "__code__", None)
        found |= set(code.co_names) if code is not None else set()
    return found


def test_attributes_are_there():
    owners: dict[str, Any] = {
        **{name: getattr(rondevu_client, name) for name in rondevu_client.__all__},
        "Signalling": Signalling,
        "ServicePublisher": ServicePublisher,
    }
    named = spans(r"`([A-Z]\w+(?:\.\w+)?)`")
    classes = {name.partition(".")[0] for name in named}
    assert classes >= {"Daemon", "Connection", "Channel", "Service", "Message", "Signalling", "ServicePublisher"}
    for name in named:
        owner, _, attribute = name.partition(".")
        assert not attribute or attribute in attributes_of(owners[owner]), name


def test_functions_of_the_daemon_are_there():
    assert {getattr(backoff, name) for name in spans(r"`backoff\.(\w+)`")} == {backoff.delays}


def test_events_are_those_of_the_socket():
    documented = {row[0]: row[2] for row in rows(sections("socket.md")["Events"], "event")}
    named = spans(r"\bevent `([^`]+)`")
    assert len(named) > 20
    for event in named:
        name, _, keys = event.partition(" ")
        assert set(re.findall(r"\w+", keys)) <= set(re.findall(r"\w+", documented[name])), event


def test_states_are_those_of_the_daemon():
    assert spans(r"\bstate `(\w+)`") == {str(state) for kind in (ConnectionState, ChannelState) for state in kind}


def test_methods_are_those_of_the_socket():
    assert spans(r"\bmethod `(\w+)`") <= TABLE.methods.keys()


def test_keys_of_a_pool_are_those_of_its_row():
    documented = {row[0] for row in rows(sections("commands.md")["services"], "key")}
    named = spans(r"`(pool\.\w+)`")
    assert named == {key for key in documented if key.startswith("pool.")}


def test_commands_are_those_of_rondevuctl():
    for words in spans(r"`rondevuctl ([a-z ]+)`"):
        command: click.Command = rondevuctl
        for word in words.split():
            assert isinstance(command, click.Group), words
            command = command.commands[word]


def test_routes_are_those_of_the_embedded_server():
    routes = {f"{route.method} {route.path}" for route in ROUTES}
    assert spans(r"answered at `([^`]+)`") == routes


# --- options ---------------------------------------------------------------------------------------------------------


def key_of(row: list[str]) -> str:
    return re.search(r"\bkey `([^`]+)`", row[2])[1]


def default_of(key: str) -> Any:
    """The default of ``[section] key`` or ``[section] list.key``; None: none. Raises `KeyError` for what is no key."""
    section, path = re.fullmatch(r"\[(\S+)\] (\S+)", key).groups()
    table: Any = SECTION_OF[section]
    if path.startswith("channels."):
        table, path = config.ChannelOptions, path.removeprefix("channels.")
    field = table.model_fields[path]
    value = RESOLVED.get(key, field.default)
    return "required" if field.is_required() else None if value in ((), math.inf) else value


def parse(text: str) -> Any:
    """A default as it is written; milliseconds come out as seconds."""
    words = {"true": True, "false": False, "none": None, "required": "required"}
    number = re.fullmatch(r"([\d.,]+)( ms| s)?", text)
    if number is None:
        return words.get(text, text)
    return float(number[1].replace(",", "")) / (1000 if number[2] == " ms" else 1)


def test_keys_are_those_of_the_configuration():
    for key in spans(r"\bkey `(\[[^`]+)`"):
        default_of(key)


@pytest.mark.parametrize("row", OPTIONS, ids=name_of)
def test_defaults_are_those_of_the_configuration(row):
    ours, _, explained = row[3].partition("; ")
    assert parse(ours) == default_of(key_of(row))
    assert explained or parse(row[1]) == parse(ours)
