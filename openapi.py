"""The description of /api/v2, as OpenAPI 3.1. What it says is held against a real server by tests/test_openapi.py."""

from __future__ import annotations

from typing import Any

from version import VERSION

Json = dict[str, Any]
_TIME: Json = {"type": "string", "format": "date-time", "description": "RFC 3339, in UTC."}
_SECONDS: Json = {"type": "integer", "description": "Seconds since 1970."}
_TEXTS: Json = {"type": "array", "items": {"type": "string"}}


def _ref(kind: str, name: str) -> Json:
    return {"$ref": f"#/components/{kind}/{name}"}


def _object(properties: Json, *, optional: tuple[str, ...] = (), **more: Any) -> Json:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False, **more}


def _or_null(schema: Json, description: str) -> Json:
    return {"oneOf": [schema, {"type": "null"}], "description": description}


def _answer(description: str, schema: Json | None = None, **headers: Json) -> Json:
    """An answer to a caller with a token."""
    named = {"X-Entitlements-Warning": _ref("headers", "Warning"), "X-Entitlements-Error": _ref("headers", "Error")}
    answer: Json = {"description": description, "headers": {**named, **headers}}
    return {**answer, "content": {"application/json": {"schema": schema}}} if schema else answer


def _operation(role: str, summary: str, answers: Json, *, errors: tuple[int, ...] = (), **more: Any) -> Json:
    failures = {str(status): _ref("responses", f"E{status}") for status in (401, 403, 503, *errors)}
    return {"summary": summary, "description": f"Needs the role {role}.", "responses": {**answers, **failures}, **more}


def _reading(operation: Json) -> Json:
    """GET, and HEAD, which answers the same without a body."""
    answers = {
        status: {"description": _ERRORS[int(status)]} if "$ref" in answer else {**answer, "content": {}}
        for status, answer in operation["responses"].items()
    }
    return {"get": operation, "head": {**operation, "responses": answers}}


_ERRORS = {
    400: "The input is wrong; the message says what it takes.",
    401: "There is no token, or an unknown one.",
    403: "The token lacks the role; or it came as Basic, with an unsafe method, and not from a page of this origin.",
    404: "There is none.",
    409: "This license is stored already; or the drain has ended, and cannot be taken back.",
    413: "The body is over 64 KiB.",
    415: "The body is not called application/json.",
    503: "The database is unreachable, or too many requests wait for it; answered at once where that is known.",
}
_JSON_ERROR: Json = {"application/json": {"schema": _ref("schemas", "Error")}}
_BEARER: Json = {"WWW-Authenticate": {"description": "Bearer", "schema": {"const": "Bearer"}}}

_SCHEMAS: Json = {
    "Error": _object({"message": {"type": "string"}, "detail": {"type": "string"}}, optional=("detail",)),
    "Feature": _object(
        {
            "entitlement": {"enum": ["entitled", "grace_period", "not_entitled"]},
            "enabled": {"type": "boolean"},
            "limit": {"type": "integer", "minimum": 1, "description": "The number that the licenses give it."},
            "actual": {
                "type": "integer",
                "minimum": 0,
                "description": "Of replica_limit: how many replicas are past their grace, counted when asked.",
            },
        },
        optional=("limit", "actual"),
    ),
    "Notice": _object(
        {
            "code": {"type": "string"},
            "message": {"type": "string"},
            "detail": {"type": "string"},
            "severity": {"enum": ["error", "warning"]},
            "blocking": {"type": "boolean", "description": "Whether it takes any replica out of service."},
        }
    ),
    "Entitlements": _object(
        {
            "features": {
                "type": "object",
                "properties": {
                    "high_availability": _ref("schemas", "Feature"),
                    "replica_limit": _ref("schemas", "Feature"),
                },
                "required": ["high_availability", "replica_limit"],
                "additionalProperties": _ref("schemas", "Feature"),
            },
            "warnings": _TEXTS,
            "errors": _TEXTS,
            "notices": {"type": "array", "items": _ref("schemas", "Notice")},
            "has_license": {"type": "boolean"},
            "trial": {"type": "boolean"},
            "refreshed_at": _or_null(_TIME, "When this worker last judged; null before it first did."),
        }
    ),
    "Replica": _object(
        {
            "id": {"type": "string", "format": "uuid"},
            "hostname": {"type": "string"},
            "version": {"type": "string"},
            "created_at": {**_TIME, "description": "Its place in the line."},
            "started_at": _TIME,
            "updated_at": {**_TIME, "description": "Its last heartbeat."},
            "draining_at": _or_null(_TIME, "When it hands its place over; null: it does not."),
            "database_latency": _or_null({"type": "integer"}, "Microseconds that its last ping took."),
            "state": {"enum": ["grace", "serving", "excluded", "draining"]},
            "self": {"type": "boolean", "description": "Whether it is the replica that answers."},
        }
    ),
    "Claims": {
        "type": "object",
        "description": "What was signed.",
        "properties": {
            "version": {"const": 3},
            "jti": {"type": "string", "format": "uuid"},
            "iat": _SECONDS,
            "nbf": _SECONDS,
            "license_expires": {**_SECONDS, "description": "The end of the term."},
            "exp": {**_SECONDS, "description": "The end of the license's own grace period."},
            "account_type": {"type": "string"},
            "account_id": {"type": "string"},
            "features": {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
            "trial": {"type": "boolean"},
            "sub": {"type": "string"},
            "deployment_ids": _TEXTS,
        },
    },
    "License": _object(
        {
            "id": {"type": "integer"},
            "uuid": {"type": "string", "format": "uuid", "description": "Its jti."},
            "uploaded_at": _TIME,
            "claims": _or_null(_ref("schemas", "Claims"), "Null: the stored license does not verify."),
        }
    ),
}
_ENTITLEMENTS = _answer("The entitlements.", _ref("schemas", "Entitlements"))
_LIMIT: Json = {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}
_PLACE: Json = {"type": "string", "pattern": "^[0-9]{1,18}_[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"}
_REPLICA: Json = {"name": "id", "in": "path", "required": True, "schema": {"type": "string", "format": "uuid"}}
_NEXT: Json = {"description": 'The next page, as <...>; rel="next" (RFC 8288).', "schema": {"type": "string"}}


def _components() -> Json:
    return {
        "schemas": _SCHEMAS,
        "headers": {
            name: {"description": f"One per {name.lower()}, percent-encoded.", "schema": {"type": "string"}}
            for name in ("Warning", "Error")
        },
        "responses": {
            f"E{status}": {
                "description": text,
                "content": _JSON_ERROR,
                **({"headers": _BEARER} if status == 401 else {}),
            }
            for status, text in _ERRORS.items()
        },
        "securitySchemes": {
            "bearer": {"type": "http", "scheme": "bearer", "description": "A token of `flask --app app token create`."},
            "basic": {"type": "http", "scheme": "basic", "description": "The token as the password, for browsers."},
        },
    }


DOCUMENT: Json = {
    "openapi": "3.1.0",
    "info": {
        "title": "Readygate",
        "version": VERSION,
        "description": "The operators' API. Every error is JSON; unknown paths are 404, other methods 405.",
    },
    "security": [{"bearer": []}, {"basic": []}],
    "paths": {
        "/api/v2/entitlements": _reading(
            _operation("viewer", "What the licenses allow, and what is wrong", {"200": _ENTITLEMENTS})
        ),
        "/api/v2/replicas": _reading(
            _operation(
                "viewer",
                "The active replicas, longest-serving first",
                {"200": _answer("A page of them.", {"type": "array", "items": _ref("schemas", "Replica")}, Link=_NEXT)},
                errors=(400,),
                parameters=[
                    {"name": "limit", "in": "query", "description": "How many, at most.", "schema": _LIMIT},
                    {"name": "after", "in": "query", "description": "From the Link header.", "schema": _PLACE},
                ],
            )
        ),
        "/api/v2/replicas/{id}/drain": {
            "post": _operation(
                "admin",
                "Have a replica hand its place over: by appointment, its own stale_after from now, or at once",
                {"202": _answer("The appointment stands.", _ref("schemas", "Replica"))},
                errors=(400, 404, 413, 415),
                parameters=[_REPLICA],
                requestBody={
                    "required": False,
                    "content": {
                        "application/json": {
                            "schema": _object(
                                {"now": {"type": "boolean", "default": False, "description": "Whether at once."}},
                                optional=("now",),
                            )
                        }
                    },
                },
            ),
            "delete": _operation(
                "admin",
                "Take a drain back, before its instant",
                {"200": _answer("There is no appointment any more.", _ref("schemas", "Replica"))},
                errors=(404, 409, 413),
                parameters=[_REPLICA],
            ),
        },
        "/api/v2/licenses": {
            **_reading(
                _operation(
                    "viewer",
                    "The stored licenses, with their claims",
                    {"200": _answer("All of them.", {"type": "array", "items": _ref("schemas", "License")})},
                )
            ),
            "post": _operation(
                "admin",
                "Store a license; it counts at once on this worker, on every other one with its next sync",
                {"201": _answer("It is stored.", _ref("schemas", "License"))},
                errors=(400, 409, 413, 415),
                requestBody={
                    "required": True,
                    "content": {
                        "application/json": {
                            "schema": _object(
                                {"license": {"type": "string", "description": "The signed text (JWT, EdDSA)."}}
                            )
                        }
                    },
                },
            ),
        },
        "/api/v2/licenses/{id}": {
            "delete": _operation(
                "admin",
                "Remove a license",
                {"204": _answer("It is gone.")},
                errors=(404, 413),
                parameters=[{"name": "id", "in": "path", "required": True, "schema": {"type": "integer"}}],
            )
        },
        "/api/v2/licenses/refresh-entitlements": {
            "post": _operation("admin", "Judge anew, now", {"200": _ENTITLEMENTS}, errors=(413,))
        },
    },
    "components": _components(),
}
