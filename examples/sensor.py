"""A sensor that posts readings to a station, whether or not the station can be reached.

    python sensor.py post 10        ten readings, a second apart (without a number: until Ctrl-C)
    python sensor.py collect        the station: prints what it gets until Ctrl-C

Start the sensor first: its readings are stored by its daemon, and arrive in order when the station comes up. It uses the
blocking library, as a script that knows nothing of asyncio would.
"""

import contextlib
import itertools
import json
import random
import sys
import time

from rondevu_client.sync import Channel, Daemon

USER, FQN = "station", "com.example.readings@1.0.0"


def post(count: int | None) -> None:
    with Daemon() as daemon:
        # A name that was never found is given up after ten attempts, unless one says otherwise.
        connection = daemon.connect(USER, FQN, name="to-station", reconnect={"max_attempts": "unlimited"})
        channel = connection.create_channel("readings", mode="send")
        for number in itertools.islice(itertools.count(1), count):
            reading = {"number": number, "celsius": round(random.gauss(20, 2), 1), "at": time.time()}
            channel.send(json.dumps(reading))  # returns when it is on disk
            waiting = daemon.queue(connection.id, "readings")["queue_size"]
            print(f"posted {number}: {waiting} on the way")
            time.sleep(1)


def collect() -> None:
    def take(channel: Channel, connection_id: str) -> None:
        for message in channel:
            reading = json.loads(message.data)
            age = time.time() - reading["at"]
            print(f"reading {reading['number']}: {reading['celsius']} °C, {age:.0f} s old")

    with Daemon() as daemon:
        service = daemon.expose_service(USER, FQN, handler=take)
        print("the station is up")
        service.wait_closed()


if __name__ == "__main__":
    role, *rest = sys.argv[1:] or [""]
    if role not in {"post", "collect"}:
        sys.exit("usage: sensor.py post [COUNT] | collect")
    with contextlib.suppress(KeyboardInterrupt):
        collect() if role == "collect" else post(int(rest[0]) if rest else None)
