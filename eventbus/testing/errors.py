"""The errors of the testing tools."""

__all__ = ["Refused"]


class Refused(Exception):
    """The edge refused a client's request. `code` is an error code of the wire protocol."""

    def __init__(self, what: str, *, code: str, message: str) -> None:
        super().__init__(f"{what} was refused: {code}: {message}")
        self.code = code
