"""Tokens for the operators of a service: digests in a table, roles, and a guard for its routes.

    tokens = Tokens()
    text, row = tokens.create(connection, "ci", role="viewer")     # text is shown now or never
    verify = Verifier(tokens, connect=connect, remember_seconds=5)
    app.register_blueprint(replicas.blueprint(registry, connect=connect, guard=guard(verify)))

A guard is any function that is given the role a route needs, `viewer` or `admin`, and returns None to let the request
pass, or the response that refuses it. An app with a login of its own writes one of three lines and needs none of this.
"""

from .errors import AuthError, TokenExists, TokenNameError, TokenNotFound, UnverifiableError
from .guard import caller, guard
from .schema import metadata
from .tokens import Role, Token, Tokens, well_formed
from .verifier import Caller, Verifier

__all__ = [
    "AuthError",
    "Caller",
    "Role",
    "Token",
    "TokenExists",
    "TokenNameError",
    "TokenNotFound",
    "Tokens",
    "UnverifiableError",
    "Verifier",
    "caller",
    "guard",
    "metadata",
    "well_formed",
]
