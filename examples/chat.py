"""Two people chat, each in a terminal.

    python chat.py alice        waits to be called
    python chat.py bob alice    calls alice

Lines typed are sent to the other one, and wait while that program, its daemon or the network is down. End it with Ctrl-D, or
with Ctrl-C. It uses the blocking library: the main thread reads the keyboard, messages are printed by listeners.
"""

import contextlib
import queue
import sys

from rondevu_client.sync import Channel, Daemon, Message

FQN = "com.example.chat@1.0.0"


def show(message: Message) -> None:
    """A listener: the message is acknowledged when it returns."""
    print(message.data)


def wait_to_be_called(daemon: Daemon, me: str) -> Channel:
    callers: queue.SimpleQueue[Channel] = queue.SimpleQueue()
    daemon.expose_service(me, FQN, handler=lambda channel, _connection_id: callers.put(channel))
    print(f"{me} waits to be called")
    return callers.get()


def call(daemon: Daemon, me: str, other: str) -> Channel:
    connection = daemon.connect(other, FQN, name=f"{me}-to-{other}")
    return connection.create_channel("chat")


def chat(me: str, other: str | None) -> None:
    with Daemon() as daemon:
        channel = wait_to_be_called(daemon, me) if other is None else call(daemon, me, other)
        channel.on("message", show)
        channel.send(f"{me} is here")
        for line in sys.stdin:
            channel.send(f"{me}: {line.rstrip()}")
        channel.send(f"{me} has left")


if __name__ == "__main__":
    if len(sys.argv) not in {2, 3}:
        sys.exit("usage: chat.py ME [OTHER]")
    with contextlib.suppress(KeyboardInterrupt):
        chat(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else None)
