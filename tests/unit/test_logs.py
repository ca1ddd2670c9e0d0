from __future__ import annotations

import asyncio
import io
import logging
import os
import re

import pytest

from rondevud import logs


@pytest.fixture(autouse=True)
def restored_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in logs.CHATTY}
    root.handlers.clear()  # those of pytest must not be closed by a set-up
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


@pytest.fixture
def stream():
    return io.StringIO()


def test_lines_carry_time_level_and_logger(stream):
    logs.set_up("info", {}, stream)
    logging.getLogger("rondevud.pool").info("kept %d offers", 3)
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO    rondevud.pool: kept 3 offers\n", stream.getvalue()
    )


def test_the_level_holds_and_can_be_changed(stream):
    logs.set_up("warning", {}, stream)
    log = logging.getLogger("rondevud.x")
    log.info("not yet")
    logs.set_level("debug")
    log.debug("now")
    assert "not yet" not in stream.getvalue()
    assert stream.getvalue().endswith("now\n")


def test_chatty_libraries_tell_nothing_at_info_and_everything_at_debug(stream):
    logs.set_up("info", {}, stream)
    logging.getLogger("aioice.ice").info("a pair")
    assert not stream.getvalue()
    logs.set_level("debug")
    logging.getLogger("aioice.ice").info("a pair")
    assert "a pair" in stream.getvalue()


def test_setting_up_twice_writes_each_line_once(stream):
    logs.set_up("info", {}, stream)
    logs.set_up("info", {}, stream)
    logging.getLogger("rondevud.x").info("once")
    assert stream.getvalue().count("once") == 1


def test_a_label_with_control_characters_cannot_forge_a_line(stream):
    logs.set_up("info", {}, stream)
    logging.getLogger("x").info("[c/%s] said %s", "a\n2026 ERROR\x1b[31m", "b\rc\u2028d")
    assert stream.getvalue().count("\n") == 1
    assert "[c/a\\x0a2026 ERROR\\x1b[31m] said b\\x0dc\\x2028d\n" in stream.getvalue()


def fail_and_log():
    try:
        int("boom")
    except ValueError:
        logging.getLogger("x").exception("failed")


def test_a_traceback_keeps_its_lines(stream):
    logs.set_up("info", {}, stream)
    fail_and_log()
    assert "\nTraceback (most recent call last):\n" in stream.getvalue()
    assert stream.getvalue().endswith("'boom'\n")


@pytest.fixture
def journal(tmp_path):
    """A stderr that is said to be the journal, and the environment that says so."""
    with (tmp_path / "journal").open("w+") as file:
        found = os.fstat(file.fileno())
        yield file, {"JOURNAL_STREAM": f"{found.st_dev}:{found.st_ino}"}


def test_under_systemd_without_its_library_lines_have_a_priority_and_no_time(journal, monkeypatch):
    file, environ = journal
    monkeypatch.setattr(logs, "JournalHandler", None)
    logs.set_up("debug", environ, file)
    log = logging.getLogger("rondevud.x")
    for level in (logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR, logging.CRITICAL):
        log.log(level, "line")
    file.seek(0)
    assert file.read() == "".join(f"<{number}>rondevud.x: line\n" for number in (7, 6, 4, 3, 2))


def test_under_systemd_each_line_of_a_traceback_has_the_priority(journal, monkeypatch):
    file, environ = journal
    monkeypatch.setattr(logs, "JournalHandler", None)
    logs.set_up("debug", environ, file)
    fail_and_log()
    file.seek(0)
    assert all(line.startswith("<3>") for line in file)


def test_with_the_library_of_systemd_the_journal_gets_the_records(journal, monkeypatch):
    class Recorder(logging.Handler):
        def __init__(self, **fields):
            super().__init__()
            self.fields, self.lines = fields, []

        def emit(self, record):
            self.lines.append(
                (self.format(record), *(record.__dict__.get(f"RONDEVU_{name}") for name in ("CONNECTION", "EVENT")))
            )

    file, environ = journal
    monkeypatch.setattr(logs, "JournalHandler", Recorder)
    logs.set_up("info", environ, file)
    logging.getLogger("x").info("up", extra=logs.fields("connected", "alice-chat"))
    (handler,) = logging.getLogger().handlers
    assert isinstance(handler, Recorder)
    assert handler.fields == {"SYSLOG_IDENTIFIER": "rondevud"}
    assert handler.lines == [("up", "alice-chat", "connected")]


def test_a_stderr_that_was_put_between_us_and_the_journal_gets_plain_lines(journal, stream):
    _, environ = journal
    logs.set_up("info", environ, stream)
    logging.getLogger("x").info("plain")
    assert stream.getvalue()[0].isdigit()


async def test_an_exception_nobody_took_is_logged_with_its_task_and_counted(stream):
    logs.set_up("info", {}, stream)
    loop = asyncio.get_running_loop()
    unhandled = logs.UnhandledExceptions()
    unhandled.install(loop)
    task = asyncio.create_task(asyncio.sleep(0), name="pool refill")
    await task
    loop.call_exception_handler({"message": "lost", "exception": ValueError("boom"), "task": task})
    loop.call_exception_handler({"message": "only words"})
    loop.set_exception_handler(None)
    assert unhandled.count == 2
    assert "ERROR   rondevud.logs: unhandled in task pool refill: lost\n" in stream.getvalue()
    assert "ValueError: boom" in stream.getvalue()
    assert "unhandled: only words" in stream.getvalue()


def test_fields_that_are_not_there_are_left_out():
    assert logs.fields("removed", "alice-chat", "") == {
        "RONDEVU_EVENT": "removed",
        "RONDEVU_CONNECTION": "alice-chat",
        "RONDEVU_LABEL": "",
    }
    assert logs.fields("ready") == {"RONDEVU_EVENT": "ready"}
