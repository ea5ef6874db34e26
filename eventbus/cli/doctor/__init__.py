"""`eventbus doctor`: checks of the settings, this machine and the brokers."""
