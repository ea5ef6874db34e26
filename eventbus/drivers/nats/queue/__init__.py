"""Queues of jobs on JetStream: a work queue with leases, and a stream of jobs that failed."""

from eventbus.drivers.nats.queue.store import NatsQueues

__all__ = ["NatsQueues"]
