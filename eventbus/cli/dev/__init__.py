"""`eventbus dev`, and the secret that it signs tokens with."""
