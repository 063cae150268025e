"""Why something that was asked for on the page was not done."""

from __future__ import annotations


class Refused(Exception):
    """It was not done; the message says why, to the person who asked."""

    def __init__(self, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.status = status
