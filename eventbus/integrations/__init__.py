"""Connects web frameworks, task queues and databases to a bus: one module each."""
