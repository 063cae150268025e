"""What the registry refuses, and why."""

from __future__ import annotations


class RegistryError(Exception):
    """The registry cannot do what was asked; the message says why."""


class ReplicaNotFound(RegistryError):
    """No replica that has not stopped has this id."""


class DrainEnded(RegistryError):
    """The appointment has passed: the place is given up, and others may have it."""
