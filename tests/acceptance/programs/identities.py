"""``identities.py SOCKET < PLAN``: processes of other users, one after another, each of which asks the daemon something.

One JSON line for each: ``{name, uid, gid, groups, steps}``; a step is ``[METHOD, PARAMS]``, or ``["hear", NAME]``,
which waits for a notification. For each step a line goes out: ``answer NAME NUMBER JSON``, of ``{error, result}`` or of the
notification's parameters; where there is no socket, ``closed NAME NUMBER REASON``. Needs root.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys

from rondevu_client.protocol import Decoder, Notification, Response, encode_request

TIMEOUT = 60.0
"""Seconds of silence after which the daemon is taken for hung."""


def say(*words: object) -> None:
    os.write(1, (" ".join(map(str, words)) + "\n").encode())


class Client:
    def __init__(self, path: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(TIMEOUT)
        self.socket.connect(path)
        self.decoder = Decoder(2**24)
        self.frames: list[object] = []
        self.heard: list[Notification] = []

    def next(self) -> object:
        while not self.frames:
            data = self.socket.recv(65_536)
            if not data:
                raise ConnectionError("closed")
            self.frames.extend(self.decoder.frames(data))
        return self.frames.pop(0)

    def ask(self, msgid: int, method: str, params: dict) -> dict:
        with contextlib.suppress(BrokenPipeError):  # what was said before it was closed can be read
            self.socket.sendall(encode_request(msgid, method, params))
        while True:
            frame = self.next()
            if isinstance(frame, Notification):
                self.heard.append(frame)
            elif isinstance(frame, Response) and frame.msgid in {msgid, None}:
                return {"error": frame.error, "result": frame.result}

    def hear(self, name: str) -> list:
        while True:
            frame = self.heard.pop(0) if self.heard else self.next()
            if isinstance(frame, Notification) and frame.method == name:
                return frame.params
            if isinstance(frame, Response) and name == "response":
                return [frame.error]


def play(path: str, person: dict) -> None:
    os.setgroups(person["groups"])
    os.setresgid(*[person["gid"]] * 3)
    os.setresuid(*[person["uid"]] * 3)
    number = 0
    try:
        client = Client(path)
        for number, (method, params) in enumerate(person["steps"]):
            answer = client.hear(params) if method == "hear" else client.ask(number + 1, method, params)
            say("answer", person["name"], number, json.dumps(answer, default=repr))
    except OSError as error:
        kind = ConnectionError if isinstance(error, ConnectionError) else type(error)
        say("closed", person["name"], number, kind.__name__)


def main() -> None:
    for line in sys.stdin:
        person = json.loads(line)
        child = os.fork()
        if not child:
            play(sys.argv[1], person)
            os._exit(0)
        os.waitpid(child, 0)
    say("done")


main()
