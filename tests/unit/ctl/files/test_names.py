"""Names that others have given files, made safe."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from rondevud.ctl.files.names import NAMELESS, numbered, safe_name


@pytest.mark.parametrize(
    ("given", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("Übergröße 1 (neu).txt", "Übergröße 1 (neu).txt"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\Windows\\system.ini", "system.ini"),
        ("..", NAMELESS),
        (".", NAMELESS),
        ("", NAMELESS),
        ("///", NAMELESS),
        (".bashrc", "bashrc"),
        ("...hidden", "hidden"),
        (" . x . ", "x"),
        ("a\x00b\x1b[31mc\nd", "ab[31mc d"),
        ("gpj\u202eexe.txt", "gpjexe.txt"),
        ("zero\u200bwidth", "zerowidth"),
        ("\ud800lone", "lone"),
        ("dir/", "dir"),
        ("x" * 500 + ".tar.gz", "x" * 193 + ".tar.gz"),
        ("ä" * 300, "ä" * 100),
    ],
)
def test_a_name_is_made_safe(given, safe):
    assert safe_name(given) == safe


@given(st.text(alphabet=st.characters(), max_size=600))
@example("." + "a" * 300)
@example("a." + "b" * 300)
@example("é" * 99 + ". .txt")
def test_a_safe_name_is_visible_short_and_of_one_directory(name):
    safe = safe_name(name)
    assert safe
    assert not set(safe) & set("/\\\0")
    assert not safe.startswith((".", " "))
    assert not safe.endswith((".", " "))
    assert not any(unicodedata.category(char)[0] == "C" for char in safe)
    assert len(numbered(safe, 10_000).encode()) <= 255
    assert safe_name(safe) == safe


@pytest.mark.parametrize(
    ("name", "second"),
    [
        ("a.txt", "a (2).txt"),
        ("a.tar.gz", "a (2).tar.gz"),
        ("a", "a (2)"),
        ("1. chapter", "1. chapter (2)"),
        ("v1.2.3", "v1.2 (2).3"),
    ],
)
def test_the_second_of_a_name_keeps_its_suffix(name, second):
    assert numbered(name, 1) == name
    assert numbered(name, 2) == second
