"""Errors as clients see them: one JSON form, `{"error": {"code": ..., "message": ...}}`."""

from collections.abc import Mapping

from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

CODES = {
    400: "bad_request",
    401: "token_needed",
    403: "refused",
    404: "not_found",
    405: "method_not_allowed",
    408: "too_slow",
    413: "too_large",
    415: "wrong_content_type",
    421: "unknown_host",
    422: "invalid",
    429: "too_many_requests",
    500: "internal",
    503: "busy",
    504: "too_slow",
}

# What every answer carries.
SECURITY_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
        "form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Refusal(HTTPException):
    """A request that is not answered as asked; the message is for its sender."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, headers)


def make_refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Returns the answer for an error."""
    return JSONResponse(make_content(status, message), status, headers=dict(headers or {}))


def make_content(status: int, message: str) -> dict[str, dict[str, str]]:
    """Returns what the answer for an error holds."""
    return {"error": {"code": CODES.get(status, "error"), "message": message}}
