"""What can be wrong with tokens. Every message may be shown to anybody."""

from __future__ import annotations


class AuthError(Exception):
    """Anything this package raises on purpose."""


class TokenNameError(AuthError):
    """A token cannot have that name."""


class TokenExists(AuthError):
    """A token of that name is there already."""


class TokenNotFound(AuthError):
    """No token has that name."""


class UnverifiableError(AuthError):
    """Whether the token is good cannot be told now: the database is unreachable, and nothing is remembered of it."""
