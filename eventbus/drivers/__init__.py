"""Adapters: each carries messages over one system."""
