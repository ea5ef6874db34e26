"""What the parts for tests raise."""

__all__ = ["Refused"]


class Refused(Exception):
    """The edge did not let a client do something; `code` is one of the wire protocol's."""

    def __init__(self, what: str, *, code: str, message: str) -> None:
        super().__init__(f"{what} was refused: {code}: {message}")
        self.code = code
