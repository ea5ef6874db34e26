"""Faults that the simulation once found, as seeds or short lists of steps; add new ones here.

A seed makes the same steps only as long as the weights in schedule.py do not change. Prefer a list
of steps, which scripts/simulate prints: it stays valid.
"""

SEEDS = {
    "a gap was reported to clients that already had later messages from the history": 100,
    "a message came twice because its history was recognized after it was delivered": 313,
}
"""Seeds, each for a run of 6000 steps."""

NODE_THAT_DIES = [
    ("join", 0, 3),
    ("join", 1, 3),
    ("connect", 0, 0),
    ("connect", 1, 1),
    ("wait", 23, 0),
    ("wait", 23, 0),
    ("kill", 1, 0),
    ("leave", 1, 3),
]
"""A user is a member through one node, and stays away when that node dies."""

STORE_RESTORED_DURING_A_READ = [
    ("pub", 23, 8),
    ("join", 6, 17),
    ("connect", 6, 5),
    ("pub", 12, 10),
    ("pub", 13, 21),
    ("pub", 5, 22),
    ("deliver", 11, 9),
    ("pub", 1, 14),
    ("lose", 8, 7),
    ("wait", 15, 23),
    ("deliver", 11, 3),
    ("wait", 14, 0),
    ("deliver", 23, 4),
    ("deliver", 23, 19),
    ("back", 14, 0),
    ("pub", 22, 5),
    ("pub", 15, 1),
    ("pub", 5, 10),
    ("pub", 13, 22),
    ("wait", 23, 9),
]
"""A node reads missed messages for a client while the store goes back and gets new ones."""

LOSS_ON_ONE_CHANNEL_OF_A_PATTERN = [
    ("connect", 9, 2),
    ("wait", 18, 0),
    ("join", 9, 0),
    ("wait", 22, 0),
    ("pub", 0, 0),
    ("lose", 2, 0),
    ("pub", 1, 0),
    ("wait", 22, 0),
    ("pub", 0, 0),
    ("wait", 22, 0),
]
"""A message is lost on its way, and one of another channel of the pattern arrives after it."""
