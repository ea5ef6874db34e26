"""The application of the edges, for any version: it defines no events and no rules."""
