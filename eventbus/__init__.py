"""Typed, real-time event broadcasting for Python, with NATS at its centre."""
