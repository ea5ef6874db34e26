"""Measures what an edge, a publisher and NATS need, for the figures in docs/deployment.md."""
