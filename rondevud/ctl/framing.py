"""Where one message ends and the next begins in a stream of bytes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import BinaryIO, NamedTuple

import click

LENGTH = 4
"""Bytes of a length, big endian."""

CHUNK = 65_536


class Framing(NamedTuple):
    split: Callable[[BinaryIO], Iterator[bytes]]
    """The messages of a stream, each as soon as it is whole; blocks. Raises `OSError`, `click.UsageError`."""
    join: Callable[[bytes], bytes]
    """A message as it is written."""
    binary: bool
    """Whether what is read is sent as bytes; else as text."""


def _split_lines(stream: BinaryIO) -> Iterator[bytes]:
    """The last one need not end with a line feed."""
    for line in stream:
        yield line.removesuffix(b"\n")


def _split_null(stream: BinaryIO) -> Iterator[bytes]:
    """The last one need not end with a null byte."""
    rest = b""
    while chunk := stream.read1(CHUNK):  # type: ignore[attr-defined]  # of every buffered stream
        *whole, rest = (rest + chunk).split(b"\0")
        yield from whole
    if rest:
        yield rest


def _split_lengths(stream: BinaryIO) -> Iterator[bytes]:
    while head := stream.read(LENGTH):
        size = int.from_bytes(head, "big")
        message = stream.read(size) if len(head) == LENGTH else b""
        if len(head) < LENGTH or len(message) < size:
            raise click.UsageError("standard input ended within a message: --binary needs each behind its length")
        yield message


LINES = Framing(_split_lines, lambda message: message + b"\n", binary=False)
NULL = Framing(_split_null, lambda message: message + b"\0", binary=False)
BINARY = Framing(_split_lengths, lambda message: len(message).to_bytes(LENGTH, "big") + message, binary=True)


def standard_input() -> BinaryIO:
    """A reader of its own: at the end of the process the interpreter would wait for a thread that reads `sys.stdin`."""
    return open(sys.stdin.fileno(), "rb", closefd=False)
