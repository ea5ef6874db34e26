"""The WebSocket node: bridges subjects to clients."""
