"""Running nodes as processes: signals, listening sockets, and several workers on one port."""
