"""Queued events: jobs, and the worker that runs them."""

from eventbus.queue.delayed import DelayedBroadcast, DelayedVolatileBroadcast
from eventbus.queue.jobs import FailedJob, Job, failed_jobs, job_of, push, queue_store
from eventbus.queue.worker import Worker

__all__ = [
    "DelayedBroadcast",
    "DelayedVolatileBroadcast",
    "FailedJob",
    "Job",
    "Worker",
    "failed_jobs",
    "job_of",
    "push",
    "queue_store",
]
