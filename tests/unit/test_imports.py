"""The rules of the house: who may import what. Read from the source, and once from fresh interpreters."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]

PARTS = ("durable", "store", "signalling", "rendezvous", "transport", "ipc", "ctl")

MEETING = {
    "rondevud.main": ("rondevud.__main__",),
    "rondevud.daemon": ("rondevud.main",),
    "rondevud.doctor": ("rondevud.main", "rondevud.care"),
    "rondevud.care": ("rondevud.house", "rondevud.daemon"),
    "rondevud.metrics": ("rondevud.daemon",),
    "rondevud.measuring": ("rondevud.metrics",),
    "rondevud.house": ("rondevud.main", "rondevud.daemon", "rondevud.metrics", "rondevud.measuring"),
    "rondevud.restoring": ("rondevud.house",),
    "rondevud.reloading": ("rondevud.house",),
    "rondevud.declaring": ("rondevud.house",),
    "rondevud.sessions": ("rondevud.house",),
    "rondevud.endings": ("rondevud.house", "rondevud.reloading"),
    "rondevud.holdings": (
        "rondevud.house",
        "rondevud.restoring",
        "rondevud.declaring",
        "rondevud.service_channel",
        "rondevud.endings",
        "rondevud.reloading",
        "rondevud.sessions",
    ),
    "rondevud.declarations": (
        "rondevud.house",
        "rondevud.restoring",
        "rondevud.declaring",
        "rondevud.holdings",
    ),
    "rondevud.policies": ("rondevud.daemon", "rondevud.reloading", "rondevud.main"),
    "rondevud.service_channel": ("rondevud.house",),
    "rondevud.keys": ("rondevud.house", "rondevud.declaring"),
    "rondevud.rows": ("rondevud.house", "rondevud.why", "rondevud.sessions"),
    "rondevud.why": ("rondevud.house",),
}
"""The modules in which the parts meet, and who may import each: nobody below them."""

HOMES = {
    "aiortc": ("rondevud.transport.",),
    "aioice": ("rondevud.transport.",),
    "libdatachannel": ("rondevud.transport.",),
    "aiohttp": ("rondevud.signalling.", "rondevud.rendezvous.app"),
    "yarl": ("rondevud.signalling.", "rondevud.rendezvous.app"),  # the URLs of aiohttp
    "pydantic": ("rondevud.config",),
    "pydantic_core": ("rondevud.config",),
    "systemd": ("rondevud.systemd", "rondevud.logs"),
    "click": ("rondevud.ctl.", "rondevud.main"),
    "rich": ("rondevud.ctl.", "rondevud.main"),
    "ifaddr": ("rondevud.transport.",),
    "cryptography": (
        "rondevud.signalling.identity",
        "rondevud.transport.certificate",
        "rondevud.rendezvous.checks",
        "rondevud.rendezvous.credentials",
    ),
    "prometheus_client": ("rondevud.exposition",),
    "uvloop": ("rondevud.main",),
    "msgpack": (
        "rondevud.durable.",
        "rondevud.store.",
        "rondevud.ipc.",
        "rondevud.ctl.",
        "rondevu_client.",
        "rondevud.declarations",  # options of what is declared, which the store does not look into
        "rondevud.declaring",
        "rondevud.restoring",
    ),
}
"""Foreign libraries and the modules that may see them; a name that ends with a dot stands for a package."""

SANS_IO = (
    "rondevud.access",
    "rondevud.records",
    "rondevud.accounts",
    "rondevud.failed",
    "rondevud.families",
    "rondevud.latencies",
    "rondevud.metric_names",
    "rondevud.ranges",
    "rondevud.backoff",
    "rondevud.durable.states",
    "rondevud.durable.frames",
    "rondevud.durable.link",
    "rondevud.durable.lanes",
    "rondevud.durable.outgoing",
    "rondevud.durable.incoming",
    "rondevud.durable.attempts",
    "rondevud.durable.buffer_watch",
    "rondevud.durable.receiver",
    "rondevud.durable.handshake",
    "rondevud.durable.effects",
    "rondevud.durable.sdp",
    "rondevud.rendezvous.rules",
    "rondevud.rendezvous.checks",
    "rondevud.rendezvous.credentials",
    "rondevud.rendezvous.records",
    "rondevud.store.queues",
    "rondevud.ctl.files.protocol",
    "rondevud.ctl.files.names",
    "rondevud.ctl.files.outgoing",
    "rondevud.ctl.files.incoming",
)
"""No I/O and no clock: bytes and time come in as arguments. Modules that are not there yet are not looked at."""

NOT_SANS_IO = {
    "asyncio",
    "aiohttp",
    "aiortc",
    "aioice",
    "libdatachannel",
    "sqlite3",
    "socket",
    "ssl",
    "threading",
    "time",
    "subprocess",
}

PORTS = {"rondevud.transport.base", "rondevud.signalling.base"}
"""Records and protocols only: what `durable` says about its collaborators."""

SHARED = {
    "rondevud",
    "rondevud.access",
    "rondevud.records",
    "rondevud.errors",
    "rondevud.events",
    "rondevud.backoff",
    "rondevud.clock",
    "rondevud.logs",
    "rondevud.failpoints",
    "rondevud.ranges",
    "rondevud.accounts",
    "rondevud.failed",
    "rondevud.latencies",
    "rondevud.syncing",
}
"""Modules of the daemon that every part may use."""


def find_modules() -> dict[str, Path]:
    found = {}
    for folder, package in ((ROOT, "rondevud"), (ROOT / "client_lib", "rondevu_client")):
        for path in sorted((folder / package).rglob("*.py")):
            name = ".".join(path.relative_to(folder).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


MODULES = find_modules()


def imports_of(tree: ast.AST, name: str = "", *, is_package: bool = False) -> set[str]:
    """Every module imported anywhere in the tree, in functions and under TYPE_CHECKING too.

    ``from a import b`` gives ``a.b`` when that is a module of ours, else ``a``.
    """
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = name.split(".")[: len(name.split(".")) - node.level + is_package]
                base = ".".join([*above, base] if base else above)
            inner = {f"{base}.{alias.name}" for alias in node.names}
            found.update(inner & MODULES.keys())
            if inner - MODULES.keys():
                found.add(base)
    return found


def imports(name: str) -> set[str]:
    path = MODULES[name]
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return imports_of(tree, name, is_package=path.name == "__init__.py")


def is_in(module: str, place: str) -> bool:
    """Whether `module` is that module, or lies in that package (``package.``)."""
    return f"{module}.".startswith(place) if place.endswith(".") else module == place


def part_of(module: str) -> str | None:
    pieces = module.split(".")
    return pieces[1] if pieces[0] == "rondevud" and len(pieces) > 1 and pieces[1] in PARTS else None


def top(module: str) -> str:
    return module.split(".", maxsplit=1)[0]


def foreign_in_wrong_home(module: str, imported: set[str]) -> set[str]:
    return {name for name in imported if not any(is_in(module, home) for home in HOMES.get(top(name), (module,)))}


def parts_crossed(module: str, imported: set[str]) -> set[str]:
    """Imports by which a part knows another part, or what stands above it."""
    part = part_of(module)
    ours = {name for name in imported if top(name) == "rondevud"}
    allowed = SHARED | (PORTS if part == "durable" else set())
    return {name for name in ours if part_of(name) != part and name not in allowed}


def reached_up(module: str, imported: set[str]) -> set[str]:
    """Imports of modules in which the parts meet, by one that stands below them."""
    return {name for name in imported & MEETING.keys() if module not in MEETING[name]}


def in_parts() -> list[str]:
    return [name for name in MODULES if part_of(name) and part_of(name) != "ctl"]


@pytest.mark.parametrize("module", MODULES)
def test_foreign_libraries_stay_in_their_homes(module):
    assert not foreign_in_wrong_home(module, imports(module))


@pytest.mark.parametrize("module", MODULES)
def test_only_known_libraries_are_used(module):
    known = set(HOMES) | {"rondevud", "rondevu_client"} | sys.stdlib_module_names
    assert {top(name) for name in imports(module)} <= known


@pytest.mark.parametrize("module", [name for name in SANS_IO if name in MODULES])
def test_sans_io_modules_do_no_io_and_read_no_clock(module):
    imported = imports(module)
    assert not {top(name) for name in imported} & NOT_SANS_IO
    assert "rondevud.clock" not in imported


@pytest.mark.parametrize("module", in_parts())
def test_a_part_knows_no_other_part_and_nothing_above_it(module):
    assert not parts_crossed(module, imports(module))


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) == "ctl"])
def test_the_command_line_knows_the_client_library_and_itself_only(module):
    ours = {name for name in imports(module) if top(name) == "rondevud" and part_of(name) != "ctl"}
    assert ours <= {"rondevud"}  # for the version


@pytest.mark.parametrize("module", [name for name in MODULES if top(name) == "rondevu_client"])
def test_the_client_library_needs_msgpack_and_the_standard_library_only(module):
    assert {top(name) for name in imports(module)} <= sys.stdlib_module_names | {"msgpack", "rondevu_client"}


@pytest.mark.parametrize("module", [name for name in MODULES if part_of(name) is None and name not in MEETING])
def test_parts_meet_in_the_daemon_only(module):
    assert not {name for name in imports(module) if part_of(name)}


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_what_stands_above(module):
    assert not reached_up(module, imports(module))


@pytest.mark.parametrize("module", MODULES)
def test_nobody_imports_systemd_as_a_whole(module):
    """It succeeds without the library wherever a folder of that name is on the path, as in this project's root."""
    assert "systemd" not in imports(module)


HEAVY = (
    "aiortc",
    "aioice",
    "libdatachannel",
    "aiohttp",
    "pydantic",
    "systemd.daemon",
    "systemd.journal",
    "rondevud.config",
)


@pytest.mark.parametrize(
    "use", ["import rondevu_client", "from rondevud.ctl.main import main; list(main.commands.values())"]
)
def test_a_client_and_the_command_line_load_nothing_heavy(use):
    """Of the command line, every command is loaded."""
    program = f"import sys; {use}; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


LOADED_WHEN_USED = ("prometheus_client", "aiohttp", "cryptography", "aiortc", "aioice", "ifaddr")


def test_a_daemon_loads_what_only_metrics_links_and_signalling_need_when_it_is_used():
    """A daemon of which nobody wants anything has 22 MB less."""
    program = f"""
import sys, rondevud.main, rondevud.daemon
from rondevud.transport.choice import make_engine
make_engine("auto")
print([name for name in {LOADED_WHEN_USED!r} if name in sys.modules])"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False, cwd=ROOT
    )
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("rondevud.durable.link", "import aiortc.sctp", {"aiortc.sctp"}),
        ("rondevud.rendezvous.storage", "from aiohttp import web", {"aiohttp"}),
        ("rondevud.rendezvous.app", "from aiohttp import web", set()),
        ("rondevud.signalling.rest", "def f():\n    import aiohttp", set()),
        ("rondevud.daemon", "import pydantic", {"pydantic"}),
        ("rondevud.configuration", "import pydantic", {"pydantic"}),
        ("rondevud.config", "from pydantic import BaseModel", set()),
    ],
)
def test_the_check_of_homes_sees_what_it_should(module, line, broken):
    assert foreign_in_wrong_home(module, imports_of(ast.parse(line), module)) == broken


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("rondevud.durable.link", "from rondevud.records import Put", set()),
        ("rondevud.durable.link", "from rondevud.transport.base import DataChannel", set()),
        ("rondevud.durable.link", "from rondevud.transport import base", set()),
        ("rondevud.ipc.server", "from rondevud.transport.base import DataChannel", {"rondevud.transport.base"}),
        ("rondevud.durable.link", "from rondevud import store", {"rondevud.store"}),
        ("rondevud.durable.link", "from .. import store", {"rondevud.store"}),
        ("rondevud.durable.link", "from . import frames", set()),
        ("rondevud.store.sqlite", "from rondevud import config", {"rondevud.config"}),
    ],
)
def test_the_check_of_parts_sees_what_it_should(module, line, broken):
    assert parts_crossed(module, imports_of(ast.parse(line), module)) == broken


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("rondevud.ipc.server", "from rondevud import house", {"rondevud.house"}),
        ("rondevud.events", "from rondevud.service_channel import ServiceChannel", {"rondevud.service_channel"}),
        ("rondevud.declarations", "from rondevud.house import House", {"rondevud.house"}),
        ("rondevud.house", "from rondevud import daemon, declarations", {"rondevud.daemon"}),
        ("rondevud.daemon", "from rondevud import house, main", {"rondevud.main"}),
        ("rondevud.main", "from rondevud import daemon, house", set()),
    ],
)
def test_the_check_of_what_stands_above_sees_what_it_should(module, line, broken):
    if broken <= MODULES.keys():
        assert reached_up(module, imports_of(ast.parse(line), module)) == broken
