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
    413: "too_large",
    415: "wrong_content_type",
    421: "unknown_host",
    422: "invalid",
    429: "too_many_requests",
    500: "internal",
    503: "busy",
    504: "too_slow",
}


class Refusal(HTTPException):
    """A request that is not answered as asked; the message is for its sender."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, message, headers)


def make_refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Returns the answer for an error."""
    content = {"error": {"code": CODES.get(status, "error"), "message": message}}
    return JSONResponse(content, status, headers=dict(headers or {}))
