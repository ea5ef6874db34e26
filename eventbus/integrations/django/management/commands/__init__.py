"""`eventbus` and `eventbus_relay`."""
