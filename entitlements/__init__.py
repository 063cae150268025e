"""Entitlements: what signed licenses in a shared table allow, and whether this replica may serve.

    service = EntitlementsService(keys=lambda: key_set(text))
    stored = service.read(connection)
    service.update(stored, facts, read_local=before)      # facts: see replicas.Registry.sync
    service.has_blocking_errors()                         # memory only, from any thread
    service.enabled("audit_log")

A license is a JWT signed with Ed25519 and verified offline. With the key set in the operator's hands it protects
against mistakes, not against the operator; a vendor passes `keys=` in code.

An app gates its own views, and adds the warnings to its own answers:

    requires = gate(service)

    @app.get("/audit")
    @requires("audit_log")
    def audit(): ...

    app.after_request(warning_headers(service))
"""

from .blueprint import Guard, blueprint, gate, warning_headers
from .errors import EntitlementsError, KeySetError, LicenseError, LicenseExists, LicenseNotFound
from .evaluate import Entitlements, evaluate
from .features import Feature
from .keys import KeyFile, KeySet, key_set
from .license import License, admit, read
from .notices import ERROR_CODES, WARNING_CODES, Notice
from .schema import metadata
from .service import EntitlementsService, LicenseFiles, Stored, StoredLicense
from .verdict import allowed

__all__ = [
    "ERROR_CODES",
    "WARNING_CODES",
    "Entitlements",
    "EntitlementsError",
    "EntitlementsService",
    "Feature",
    "Guard",
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
    "blueprint",
    "evaluate",
    "gate",
    "key_set",
    "metadata",
    "read",
    "warning_headers",
]
