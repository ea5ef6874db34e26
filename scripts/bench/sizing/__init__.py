"""What an edge, a publisher and NATS need: how the figures of docs/deployment.md are measured."""
