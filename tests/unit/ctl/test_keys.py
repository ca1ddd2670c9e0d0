"""Keys of user names at the command line."""

from __future__ import annotations

import base64
import json
import os
import pty

import pytest

pytestmark = pytest.mark.once

SEED = base64.b64encode(b"\x01" * 32).decode()
PUBLIC_KEY = "iojj3XQJ8ZX9UtstPLpdcspnCb8dlBIb83SIAbQPb1w="
"""What the JavaScript client makes of that seed."""


async def test_a_key_is_made_shown_listed_and_exported(ctl, tmp_path):
    made = json.loads((await ctl("--json", "key", "generate", "alice")).out)
    assert made["file"] == str(tmp_path / "keys" / "alice.key")
    assert json.loads((await ctl("--json", "key", "show", "alice")).out) == made
    assert json.loads((await ctl("--json", "key", "list")).out) == [made]
    exported = await ctl("key", "export", "alice")
    assert len(base64.b64decode(exported.out)) == 32
    assert exported.err == ""
    assert json.loads((await ctl("--json", "key", "export", "alice")).out)["private_key"] == exported.out.strip()


async def test_a_key_is_not_made_twice(ctl):
    await ctl("key", "generate", "alice")
    done = await ctl("key", "generate", "alice")
    assert (done.code, done.out) == (1, "")
    assert "(key_exists)" in done.err


async def test_a_key_that_is_not_there_is_said_with_what_to_do(ctl):
    for command in ("show", "export"):
        done = await ctl("key", command, "alice")
        assert (done.code, done.out) == (1, "")
        assert "no key for user name alice here (no_key)" in done.err
        assert "key list" in done.err


async def test_a_key_is_imported_from_standard_input_or_a_file(ctl, tmp_path):
    done = await ctl("--json", "key", "import", "alice", stdin=f"{SEED}\n".encode())
    file = str(tmp_path / "keys" / "alice.key")
    assert json.loads(done.out) == {"username": "alice", "public_key": PUBLIC_KEY, "file": file, "kept": None}
    (tmp_path / "bob.txt").write_text(SEED)
    done = await ctl("--json", "key", "import", "bob", str(tmp_path / "bob.txt"))
    assert json.loads(done.out)["public_key"] == PUBLIC_KEY


async def test_another_key_is_replaced_with_force_only_and_kept(ctl, tmp_path):
    await ctl("key", "generate", "alice")
    before = (await ctl("key", "export", "alice")).out
    done = await ctl("key", "import", "alice", stdin=SEED.encode())
    assert (done.code, done.out) == (1, "")
    assert "(key_exists)\n`rondevuctl key import --force` replaces it" in done.err
    done = await ctl("key", "generate", "alice")  # which has no such option
    assert "rondevuctl key import --force" in done.err
    assert (await ctl("key", "export", "alice")).out == before
    done = await ctl("--json", "key", "import", "alice", "--force", stdin=SEED.encode())
    kept = tmp_path / "keys" / "alice.key.old-1"
    assert json.loads(done.out)["kept"] == str(kept)
    assert json.loads(kept.read_text())["seed"] == before.strip()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert (await ctl("key", "export", "alice")).out.strip() == SEED


async def test_the_same_key_again_changes_nothing(ctl):
    await ctl("key", "import", "alice", stdin=SEED.encode())
    done = await ctl("--json", "key", "import", "alice", "--force", stdin=SEED.encode())
    assert (done.code, json.loads(done.out)["kept"]) == (0, None)


@pytest.mark.parametrize("content", [b"not a key!", base64.b64encode(b"short"), base64.b64encode(b"\x02" * 64)])
async def test_what_is_no_key_is_refused_and_not_repeated(ctl, content):
    done = await ctl("key", "import", "alice", stdin=content)
    assert (done.code, done.out) == (1, "")
    assert "key of alice: the seed" in done.err
    assert content.decode() not in done.err


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"x" * 2000])
async def test_what_cannot_be_a_key_is_a_usage_error(ctl, content):
    done = await ctl("key", "import", "alice", stdin=content)
    assert done.code == 2
    assert "base64 of 32 bytes" in done.err


async def test_a_private_key_is_never_an_argument(ctl):
    done = await ctl("key", "import", "alice", SEED)
    assert (done.code, done.out) == (2, "")


async def test_a_name_that_is_none_is_refused(ctl):
    done = await ctl("key", "generate", "../etc/passwd")
    assert done.code == 1
    assert "3 to 32 characters" in done.err


async def test_a_key_is_deleted_after_yes(ctl, tmp_path):
    await ctl("key", "generate", "alice")
    assert (await ctl("key", "delete", "alice", "--yes")).code == 0
    assert list((tmp_path / "keys").iterdir()) == []
    assert (await ctl("key", "delete", "alice", "--yes")).code == 1


async def test_deleting_asks_first_and_needs_a_terminal_for_that(ctl, begin):
    await ctl("key", "generate", "alice")
    done = await ctl("key", "delete", "alice")
    assert done.code == 2
    assert "--yes" in done.err
    ours, theirs = pty.openpty()
    process = await begin("key", "delete", "alice", stdin=theirs)
    os.close(theirs)
    os.write(ours, b"n\n")
    _, err = await process.communicate()
    os.close(ours)
    assert process.returncode == 1
    assert b"Delete the only key known here for alice" in err
    assert (await ctl("key", "show", "alice")).code == 0


async def test_the_key_of_a_declared_service_is_not_deleted(ctl):
    await ctl("key", "generate", "alice")
    await ctl("expose", "alice", "a.b@1.0.0")
    done = await ctl("key", "delete", "alice", "--yes")
    assert (done.code, done.out) == (1, "")
    assert "alice/a.b@1.0.0 needs the key of alice: withdraw it first (key_in_use)" in done.err
    await ctl("withdraw", "alice", "a.b@1.0.0")
    assert (await ctl("key", "delete", "alice", "--yes")).code == 0
