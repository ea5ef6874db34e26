"""The demo: a nats-server, an edge and a service in one command, with a web page."""
