"""The catalogue of events that ships with eventbus."""
