"""Long load: thousands of connections that come, go, join and leave, and what is left of them."""
