"""Entitlements: what signed licenses in a shared table allow, and whether this replica may serve.

    service = EntitlementsService(keys=lambda: key_set(text))
    stored = service.read(connection)
    service.update(stored, facts, read_local=before)      # facts: see replicas.Registry.sync
    service.has_blocking_errors()                         # memory only, from any thread
    service.enabled("audit_log")

A license is a JWT signed with Ed25519 and verified offline. With the key set in the operator's hands it protects
against mistakes, not against the operator; a vendor passes `keys=` in code.
"""

from .errors import EntitlementsError, KeySetError, LicenseError, LicenseExists, LicenseNotFound
from .evaluate import Entitlements, Feature, Notice, allowed, evaluate
from .keys import KeyFile, KeySet, key_set
from .license import License, admit, read
from .schema import metadata
from .service import EntitlementsService, LicenseFiles, Stored, StoredLicense

__all__ = [
    "Entitlements",
    "EntitlementsError",
    "EntitlementsService",
    "Feature",
    "KeyFile",
    "KeySet",
    "KeySetError",
    "License",
    "LicenseError",
    "LicenseExists",
    "LicenseFiles",
    "LicenseNotFound",
    "Notice",
    "Stored",
    "StoredLicense",
    "admit",
    "allowed",
    "evaluate",
    "key_set",
    "metadata",
    "read",
]
