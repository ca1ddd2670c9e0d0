"""A boss hands out tasks; several workers of one machine share them.

    python work_queue.py boss 20        hands out twenty tasks to the first crew that comes, prints the results, ends
    python work_queue.py worker ann     takes tasks until Ctrl-C; start as many as you like, and stop them at any time

The workers attach to one channel in the mode ``shared``: each task goes to one of them. A task that a worker had not done
when it went away goes to another one. That can do a task twice, so the boss counts results by task.
"""

import asyncio
import contextlib
import json
import sys

from rondevu_client import Channel, Daemon

USER, FQN = "boss", "com.example.work@1.0.0"


def is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


async def work(name: str) -> None:
    async with Daemon() as daemon:
        # The boss may come later: a name that was never found is given up after ten attempts, unless one says otherwise.
        connection = await daemon.connect(USER, FQN, name="to-boss", reconnect={"max_attempts": "unlimited"})
        # Little credit, so that no worker has a heap before it while another one has nothing to do.
        channel = await connection.create_channel("tasks", mode="shared", credit=1)
        print(f"{name} is ready")
        async for task in channel:
            number = int(task.data)
            result = await asyncio.to_thread(is_prime, number)
            await channel.send(json.dumps({"task": number, "prime": result, "worker": name}))
            await task.ack()  # only now: until then it is nobody's, should this worker die
            print(f"{name} has done {number}")


async def hand_out(count: int) -> None:
    crews: asyncio.Queue[Channel] = asyncio.Queue()

    async def welcome(channel: Channel, connection_id: str) -> None:
        await crews.put(channel)

    async with Daemon() as daemon:
        await daemon.expose_service(USER, FQN, handler=welcome)
        print("the boss waits for a crew")
        channel = await crews.get()
        tasks = range(1_000_003, 1_000_003 + count)
        for number in tasks:
            await channel.send(str(number))
        missing = set(tasks)
        while missing:
            message = await channel.receive()
            result = json.loads(message.data)
            if result["task"] in missing:
                missing.remove(result["task"])
                print(f"{result['task']} {'is' if result['prime'] else 'is not'} prime, says {result['worker']}")
            await message.ack()
        print("all done")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["boss", count]:
            job = hand_out(int(count))
        case ["worker", name]:
            job = work(name)
        case _:
            sys.exit("usage: work_queue.py boss COUNT | worker NAME")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(job)
