"""How floods by some clients affect the others, for every kind of frame and request."""
