"""What every request passes: who may ask, how much, how long, and what its answer must carry."""

import asyncio
import hmac
import logging
import re
from collections.abc import Callable, Mapping, MutableMapping
from time import perf_counter
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from indistill.retrieval.serve.limits import RateLimit, Uploads
from indistill.retrieval.serve.problems import SECURITY_HEADERS, Refusal, make_refusal
from indistill.retrieval.serve.settings import Settings

LOGGER = logging.getLogger("indistill.serve")
OPEN_ROUTES = ("/", "/healthz", "/readyz")  # and /static/: the page without its data
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
READING = ("GET", "HEAD")
GLANCE_COST = 0.05  # of a search: a page of results asks for many thumbnails
HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[\w.-]+)(?::\d+)?", re.ASCII)
FAILED, GONE = 500, 499  # GONE: for the log and the figures, as the client is not there any more
Observer = Callable[[str, str, int, float], None]


class Guard:
    """ASGI middleware: checks each request, bounds its body and its time, and completes, counts and logs its answer.

    The log names the route and never the query, the file or the answer.

    Args:
        app: what answers.
        settings: the limits.
        observe: called with method, route, code and seconds of each request.
    """

    def __init__(self, app: ASGIApp, settings: Settings, observe: Observer) -> None:
        self._app, self._settings, self._observe = app, settings, observe
        self._hosts, self._rate = settings.known_hosts, RateLimit(settings.searches_per_second)
        self._uploads = Uploads(settings.max_upload_bytes, settings.uploads_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request, or refuses it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, code = perf_counter(), FAILED

        async def send_complete(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                complete_headers(message)
            await send(message)

        try:
            await self._answer(scope, receive, send_complete)
        except ClientDisconnect:
            code = GONE
        finally:
            seconds, route = perf_counter() - started, name_route(scope)
            method = scope["method"] if scope["method"] in METHODS else "other"
            self._observe(method, route, code, seconds)
            LOGGER.info("%s %s %d %.1f ms", method, route, code, 1e3 * seconds)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        answering = False

        async def send_noticed(message: Message) -> None:
            nonlocal answering
            answering = True
            await send(message)

        async def refuse(status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
            if answering:  # what has begun cannot be taken back: uvicorn closes the connection
                LOGGER.warning("an answer was broken off: %s", message)
            else:
                await make_refusal(status, message, headers)(scope, receive, send)

        body = self._uploads.open()
        try:
            self._check(scope)
            async with asyncio.timeout(self._settings.time_limit_s):
                await self._app(scope, body.bound(receive), send_noticed)
        except Refusal as refusal:
            await refuse(refusal.status_code, refusal.detail, refusal.headers)
        except TimeoutError:
            await refuse(504, f"the request took longer than {self._settings.time_limit_s:g} s")
        except asyncio.CancelledError:  # at the end of the server alone
            await refuse(503, "the server is stopping", {"Connection": "close", "Retry-After": "5"})
        finally:
            body.close()

    def _check(self, scope: Scope) -> None:
        """Raises Refusal for a request that must not be answered, before anything of its body is read."""
        headers = Headers(scope=scope)
        if "content-length" in headers and "transfer-encoding" in headers:
            raise Refusal(400, "the request has two lengths", {"Connection": "close"})
        host = headers.get("host", "")
        if split_host(host) not in self._hosts:
            raise Refusal(421, "this server does not go by the name in the Host header; see --allow-host")
        if scope["method"] not in READING and is_foreign(headers, host):
            raise Refusal(403, "the request comes from another site's page")
        path = scope["path"]
        if path in OPEN_ROUTES or path.startswith("/static/"):
            return
        if self._settings.token is not None and not shows_token(headers, self._settings.token):
            raise Refusal(401, "a token is needed: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"})
        client = scope["client"][0] if scope.get("client") else ""
        wait = self._rate.take(client, GLANCE_COST if scope["method"] in READING else 1.0)
        if wait > 0:
            raise Refusal(429, "too many requests from this address", {"Retry-After": str(int(wait) + 1)})
        self._uploads.check_length(headers.get("content-length", ""))


def complete_headers(message: MutableMapping[str, Any]) -> None:
    """Adds to the start of an answer what every answer carries."""
    headers = MutableHeaders(scope=message)
    for name, value in SECURITY_HEADERS.items():
        headers[name] = value
    headers.setdefault("cache-control", "no-store")


def name_route(scope: Scope) -> str:
    """Returns the template of the route that answered; what no route answered has one name, not its path."""
    path = getattr(scope.get("route"), "path", None)
    return str(path) if path else "unmatched"


def split_host(header: str) -> str:
    """Returns the name in a Host header, without port and brackets, in lower case; the empty string if it is none."""
    found = HOST.fullmatch(header)
    return found[1].lower().strip("[]") if found else ""


def is_foreign(headers: Headers, host: str) -> bool:
    """Whether a browser says that the page which asks is not ours. Programs send neither header."""
    site = headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        return True
    origin = headers.get("origin")
    if origin is None:
        return False
    try:
        return urlsplit(origin).netloc.lower() != host.lower()
    except ValueError:  # no address at all, as `http://[`
        return True


def shows_token(headers: Headers, token: str) -> bool:
    """Whether the request carries the token; compared in constant time."""
    scheme, _, given = headers.get("authorization", "").partition(" ")
    return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), token.encode())
