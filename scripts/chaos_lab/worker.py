"""A process with a durable subscription and a queue worker.

It records what it has handled in the file CHAOS_HANDLED. While the file CHAOS_HOLD exists,
listeners wait.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path

from eventbus import EventBus, EventContext, Worker, listen
from eventbus.cli.chaos import EVENT
from scripts.chaos_lab.events import PREFIX, Job, Seen
from scripts.chaos_lab.handled import HELD, QUEUE, append

HANDLED, HOLD = Path(os.environ["CHAOS_HANDLED"]), Path(os.environ["CHAOS_HOLD"])
_LOOK_S = 0.05


def is_held() -> bool:
    """Whether listeners have to wait."""
    return HOLD.exists()


@listen(Job)
async def work(job: Job) -> None:
    """Handle a job; wait first if this process is about to be killed."""
    if is_held():
        append(HANDLED, HELD, os.getpid(), 0)
        while is_held():  # noqa: ASYNC110 - another process removes the file
            await asyncio.sleep(_LOOK_S)
    append(HANDLED, QUEUE, job.by, job.n)


async def see(event: Seen, context: EventContext) -> None:
    """Handle a message of the durable subscription."""
    append(HANDLED, context.channel, event.by, event.n)


async def main() -> None:
    """Run until SIGTERM."""
    bus = EventBus.from_env()
    bus.subscribe(
        Seen, see, name=EVENT, channel=f"{PREFIX}.*.*", group="lab", durable=True,
        from_start=True, ack_wait=5, max_deliver=100, backoff=(0.2,),
    )  # fmt: skip
    async with bus:
        worker = Worker(bus, queues=("chaos",), concurrency=4)
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, worker.stop)
        await worker.run()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
