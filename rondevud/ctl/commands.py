"""The commands by name: a module is loaded when one of its commands is asked for.

A command is typed more often than all of them are listed, and most of the time it takes is spent on importing.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from importlib import import_module

import click

MODULES = {
    "status": ("status", "reload"),
    "users": ("claim", "check"),
    "keys": ("key",),
    "services": ("services", "expose", "withdraw"),
    "connections": ("connections", "connect", "close", "reconnect", "wait"),
    "sessions": ("sessions", "forget", "kick", "block", "unblock"),
    "channels": ("channels",),
    "queue": ("queue",),
    "clients": ("clients",),
    "why": ("why",),
    "send": ("send",),
    "tail": ("tail",),
    "pipe": ("pipe",),
    "send_file": ("send-file",),
    "receive_files": ("receive-files",),
    "events": ("events",),
    "top": ("top",),
    "doctor": ("doctor", "backup"),
    "completion": ("completion",),
}
"""Modules of this package, and the names of what stands in ``COMMANDS`` there."""


class Commands(MutableMapping[str, click.Command]):
    """What `click.Group.commands` is: names, and commands that are loaded by being looked up."""

    def __init__(self) -> None:
        self._places: dict[str, str | click.Command] = {
            name: module for module, names in MODULES.items() for name in names
        }
        """The module where a command is, or the command."""

    def __getitem__(self, name: str) -> click.Command:
        place = self._places[name]
        if isinstance(place, str):
            module = import_module(f"{__package__}.{place}")
            self._places |= {command.name: command for command in module.COMMANDS}
            place = self._places[name]
        assert isinstance(place, click.Command), name  # noqa: S101 - a test holds MODULES to what the modules say
        return place

    def __setitem__(self, name: str, command: click.Command) -> None:
        self._places[name] = command

    def __delitem__(self, name: str) -> None:
        del self._places[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)
