"""What can be wrong with licenses and keys. Every message may be shown to anybody: none repeats what it was given."""

from __future__ import annotations


class EntitlementsError(Exception):
    """Anything this package raises on purpose."""


class KeySetError(EntitlementsError):
    """The key set cannot be used."""


class LicenseError(EntitlementsError):
    """A license is refused; `code` says why in one word, the message in a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class LicenseExists(EntitlementsError):
    """The same license (by its jti) is stored already."""


class LicenseNotFound(EntitlementsError):
    """No license has that id."""
