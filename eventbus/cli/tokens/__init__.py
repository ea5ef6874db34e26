"""`eventbus token` and `eventbus revoke`: issue, inspect and revoke tokens."""
