"""`eventbus schema`: the contracts of an application's events."""
