"""`eventbus subjects`: channels, their messages and their stored history."""
