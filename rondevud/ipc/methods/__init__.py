"""The methods of the socket, one module per noun; `TABLE` is what a session looks them up in."""

from __future__ import annotations

from rondevud.ipc.methods import attachments, connections, daemon, events, queues, services, sessions, users
from rondevud.ipc.table import Table

__all__ = ["TABLE"]

TABLE = Table()

for _module in (daemon, users, services, connections, sessions, attachments, queues, events):
    _module.register(TABLE)
