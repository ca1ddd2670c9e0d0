"""The directory that takes files: publication that is interrupted anywhere, records, disks without room or links."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from rondevud.ctl.files import folder as folder_module
from rondevud.ctl.files.folder import DONE_REMEMBERED, HIDDEN, UNFINISHED_KEPT, Folder
from rondevud.ctl.files.incoming import UNFINISHED, Incoming, Record
from rondevud.ctl.files.protocol import Chunk, Done, End, Offer, Progress, Refused, Resume, transfer_id

CONTENT = b"what is sent" * 1_000
DIGEST = hashlib.sha256(CONTENT).digest()
RUN = b"run 1   "
OFFER = Offer(transfer_id("a.txt", len(CONTENT), DIGEST), RUN, "a.txt", len(CONTENT), DIGEST)
CHUNK, END = Chunk(OFFER.id, 0, CONTENT), End(OFFER.id)
RECORD = Record(OFFER.id, RUN, "a.txt", len(CONTENT), DIGEST)


class Cut(BaseException):
    """The program ends here."""


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path)


@pytest.fixture
def shelf(folder):
    return folder.shelf("conn-1", "files")


def visible(folder: Folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.path.iterdir() if path.name != HIDDEN and path.is_file()}


def hidden(folder: Folder) -> set[str]:
    return {path.suffix for path in folder.hidden.iterdir()}


def test_a_file_is_published_and_its_record_is_kept(folder, shelf):
    incoming = Incoming(shelf)
    assert incoming.take(OFFER) == [Resume(OFFER.id, RUN, 0, 128 * 1024)]
    assert incoming.take(CHUNK) == []
    assert visible(folder) == {}
    assert incoming.sync() == [Progress(OFFER.id, RUN, len(CONTENT))]
    assert incoming.take(END) == [Done(OFFER.id, RUN, "a.txt")]
    assert visible(folder) == {"a.txt": CONTENT}
    assert hidden(folder) == {".record"}
    assert folder.hidden.stat().st_mode & 0o777 == 0o700
    again = Incoming(folder.shelf("conn-1", "files"))
    assert again.take(OFFER) == again.take(END) == [Done(OFFER.id, RUN, "a.txt")]
    assert again.take(CHUNK) == []


@pytest.mark.parametrize("step", ["save", "link", "unlink"])
@pytest.mark.parametrize("after", [False, True])
def test_a_publication_that_is_cut_anywhere_ends_in_one_file(folder, shelf, monkeypatch, step, after):
    """Whatever step was the last one, before or after it was done: what comes again is answered, nothing is twice."""
    incoming = Incoming(shelf)
    incoming.take(OFFER)
    incoming.take(CHUNK)
    (folder.path / "a.txt").write_bytes(b"of somebody else")
    with monkeypatch.context() as patch:

        def cut(owner: object, name: str) -> None:
            real = getattr(owner, name)

            def step(*args, **kwargs):
                if after:
                    real(*args, **kwargs)
                raise Cut

            patch.setattr(owner, name, step)

        if step == "save":
            cut(shelf, "save")
        elif step == "link":
            cut(folder_module, "_give_name")
        else:
            cut(Path, "unlink")
        with pytest.raises(Cut):
            incoming.take(END)
    again = Incoming(folder.shelf("conn-1", "files"))
    assert again.take(END) == [Done(OFFER.id, RUN, "a (2).txt")]
    assert visible(folder) == {"a.txt": b"of somebody else", "a (2).txt": CONTENT}
    assert hidden(folder) <= {".record", ".new"}


def test_a_name_taken_in_the_last_moment_is_left_alone(folder, shelf, monkeypatch):
    shelf.open(RECORD).write(0, CONTENT)
    real = shelf.save

    def save_late(record: Record) -> None:
        real(record)
        if record.final == "a.txt":
            (folder.path / "a.txt").write_bytes(b"faster")

    monkeypatch.setattr(shelf, "save", save_late)
    assert shelf.publish(RECORD).final == "a (2).txt"
    assert visible(folder) == {"a.txt": b"faster", "a (2).txt": CONTENT}


def test_a_file_system_without_links_renames(folder, shelf, monkeypatch):
    def hardlink_to(*_args):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", hardlink_to)
    (folder.path / "a.txt").write_bytes(b"mine")
    incoming = Incoming(shelf)
    incoming.take(OFFER)
    incoming.take(CHUNK)
    assert incoming.take(END) == [Done(OFFER.id, RUN, "a (2).txt")]
    assert visible(folder) == {"a.txt": b"mine", "a (2).txt": CONTENT}
    assert Incoming(folder.shelf("conn-1", "files")).take(END) == [Done(OFFER.id, RUN, "a (2).txt")]


def test_what_comes_again_after_a_power_cut_is_written_again(folder, shelf):
    """A length can outlive a power cut without its content; what was not synced was not acknowledged."""
    incoming = Incoming(shelf)
    incoming.take(OFFER)
    incoming.take(CHUNK)
    (part,) = folder.hidden.glob("*.part")
    part.write_bytes(bytes(len(CONTENT)))
    again = Incoming(folder.shelf("conn-1", "files"))
    assert again.take(CHUNK) == []
    assert again.take(END) == [Done(OFFER.id, RUN, "a.txt")]
    assert visible(folder) == {"a.txt": CONTENT}


def test_what_was_moved_away_is_taken_again_from_another_run_only(folder, shelf):
    incoming = Incoming(shelf)
    for message in (OFFER, CHUNK, END):
        incoming.take(message)
    (folder.path / "a.txt").unlink()
    assert incoming.take(OFFER) == [Done(OFFER.id, RUN, "a.txt")]
    assert incoming.take(replace(OFFER, run=b"run 2   ")) == [Resume(OFFER.id, b"run 2   ", 0, 128 * 1024)]


def test_what_was_changed_since_is_not_what_was_received(folder, shelf):
    incoming = Incoming(shelf)
    for message in (OFFER, CHUNK, END):
        incoming.take(message)
    (folder.path / "a.txt").write_bytes(CONTENT[::-1])
    incoming.take(replace(OFFER, run=b"run 2   "))
    incoming.take(CHUNK)
    assert incoming.take(END) == [Done(OFFER.id, b"run 2   ", "a (2).txt")]


def test_connections_and_labels_do_not_share_transfers(folder):
    owners = [("conn-1", "files"), ("conn-2", "files"), ("conn-1", "other")]
    answers = []
    for owner in owners:
        incoming = Incoming(folder.shelf(*owner))
        for message in (OFFER, CHUNK, END):
            answers += incoming.take(message)
    assert [answer.name for answer in answers if isinstance(answer, Done)] == ["a.txt", "a (2).txt", "a (3).txt"]


def test_what_nobody_goes_on_with_is_removed_in_the_end(folder, shelf):
    for number in range(UNFINISHED):
        shelf.save(replace(RECORD, id=bytes([number]) * 16))
        shelf.open(replace(RECORD, id=bytes([number]) * 16)).close()
    incoming = Incoming(shelf)
    assert incoming.take(OFFER)[0].why == "too_many"
    long_ago = time.time() - UNFINISHED_KEPT - 60
    for path in folder.hidden.glob(f"*{'01' * 16}*"):
        os.utime(path, (long_ago, long_ago))
    assert isinstance(incoming.take(OFFER)[0], Resume)
    assert len(list(folder.hidden.glob("*.part"))) == UNFINISHED
    for path in folder.hidden.glob(f"*{'02' * 16}*"):
        os.utime(path, (long_ago, long_ago))
    shelf.save(replace(RECORD, id=b"d" * 16, final="done"))
    for path in folder.hidden.glob(f"*{b'd'.hex() * 16}*"):
        os.utime(path, (time.time() - DONE_REMEMBERED - 60,) * 2)
    Folder(folder.path)
    assert len(list(folder.hidden.glob("*.part"))) == UNFINISHED - 1
    assert not list(folder.hidden.glob(f"*{b'd'.hex() * 16}*"))


def test_a_record_that_is_damaged_is_forgotten(folder, shelf):
    shelf.save(RECORD)
    (path,) = folder.hidden.glob("*.record")
    path.write_bytes(b"\xc1")
    assert shelf.load() == []
    assert hidden(folder) == set()


def test_a_hidden_directory_that_is_a_link_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / HIDDEN).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(NotADirectoryError):
        Folder(tmp_path)


# --- a disk without room ---------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "tmpfs", place]
    try:
        made = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        pytest.skip(f"a disk cannot be mounted here: {error}")
    if made.returncode:
        pytest.skip(f"a disk cannot be mounted here: {made.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.once
def test_a_full_disk_is_told_and_what_was_received_goes_on_when_there_is_room(small_disk):
    folder = Folder(small_disk)
    content = os.urandom(800_000)
    digest = hashlib.sha256(content).digest()
    offer = Offer(transfer_id("b", len(content), digest), RUN, "b", len(content), digest)
    pieces = [Chunk(offer.id, start, content[start : start + 100_000]) for start in range(0, len(content), 100_000)]
    incoming = Incoming(folder.shelf("conn-1", "files"))
    assert isinstance(incoming.take(offer)[0], Resume)
    assert incoming.take(pieces[0]) + incoming.take(pieces[1]) == []
    incoming.sync()
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * 600_000)
    answers = [answer for piece in pieces[2:] for answer in incoming.take(piece)]
    assert [(answer.why, type(answer)) for answer in answers] == [("disk_full", Refused)]
    assert [answer.why for answer in incoming.take(offer)] == ["disk_full"], "it is known before anything is sent"
    filler.unlink()
    (resume,) = incoming.take(offer)
    assert resume.received == 200_000
    for piece in pieces[2:]:
        incoming.take(piece)
    assert incoming.take(End(offer.id)) == [Done(offer.id, RUN, "b")]
    assert visible(folder) == {"b": content}


def test_what_does_not_fit_at_all_takes_no_place_among_the_unfinished(shelf, monkeypatch):
    monkeypatch.setattr(shelf, "free", lambda: 10)
    incoming = Incoming(shelf)
    for _ in range(2 * UNFINISHED):
        assert incoming.take(OFFER)[0].why == "disk_full"
    assert shelf.load() == []
