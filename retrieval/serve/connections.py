"""Connections that are bounded in number and in time, which uvicorn's own are not."""

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol
from uvicorn.server import ServerState

from indistill.retrieval.serve.problems import SECURITY_HEADERS, make_content
from indistill.retrieval.serve.settings import Settings

GRACE_S = 5.0  # beyond the time limit of a request, which answers before


class Crowd:
    """The connections of a server that wait for a request, oldest first, and how many connections there may be.

    Args:
        settings: the limits in time.
        places: connections at once.
    """

    def __init__(self, settings: Settings, places: int) -> None:
        self.settings, self.places = settings, places
        self.waiting: dict[BoundedProtocol, None] = {}


class BoundedProtocol(H11Protocol):
    """HTTP/1.1 of one connection, read by h11, which refuses what two readers could take for two things.

    A connection that brings no request in time is closed, and one that does not take its answer is dropped. When there
    are too many, the one that has waited longest for a request makes room; if all are at work, the new one is refused.
    """

    def __init__(
        self,
        crowd: Crowd,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._crowd, self._settings = crowd, crowd.settings
        self._alarm: asyncio.TimerHandle | None = None
        self._stalled = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begins to wait for the first request."""
        super().connection_made(transport)
        self._await_request()
        if len(self.connections) <= self._crowd.places:
            return
        oldest = next(iter(self._crowd.waiting))
        if oldest is self:
            self._refuse(503, "too many connections; try again in a second", {"retry-after": "1"})
        else:
            oldest._drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Waits for nothing any more."""
        self._crowd.waiting.pop(self, None)
        if self._alarm is not None:
            self._alarm.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Reads what has come; with a request, the connection is not one that waits any more."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._crowd.waiting.pop(self, None)
            self._watch()

    def on_response_complete(self) -> None:
        """Begins to wait for the next request."""
        self._await_request()
        super().on_response_complete()  # begins with the next request, if that is there

    def pause_writing(self) -> None:
        """Watches a client that does not read its answer."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Goes on when the client reads."""
        super().resume_writing()
        self._watch()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, in the form of all refusals."""
        self._refuse(400, msg)

    def _await_request(self) -> None:
        self._crowd.waiting[self] = None
        self._watch()

    def _watch(self) -> None:
        """Sets the alarm for what must happen next; a stalled client's goes on when it asks for more meanwhile."""
        if self.flow.write_paused:
            if not self._stalled:
                self._set_alarm(self._settings.stall_limit_s, self._drop)
        elif self in self._crowd.waiting:
            self._set_alarm(self._settings.head_limit_s, self._end_waiting)
        else:
            self._set_alarm(self._settings.time_limit_s + GRACE_S, self._drop)
        self._stalled = self.flow.write_paused

    def _end_waiting(self) -> None:
        head_begun = self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]
        if head_begun and not self.transport.is_closing():
            self._refuse(408, f"the head of the request took longer than {self._settings.head_limit_s:g} s")
        else:
            self.transport.close()
            self._set_alarm(self._settings.stall_limit_s, self._drop)

    def _refuse(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        """Answers what never becomes a request of the application, and closes."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(make_content(status, message)).encode()
            lines = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
            head = h11.Response(
                status_code=status,
                headers=list({**SECURITY_HEADERS, **lines, **(headers or {})}.items()),
                reason=STATUS_PHRASES[status],
            )
            for event in (head, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._crowd.waiting.pop(self, None)
        self._set_alarm(self._settings.stall_limit_s, self._drop)

    def _drop(self) -> None:
        """Ends at once, whatever is still to be sent."""
        self._crowd.waiting.pop(self, None)
        self.connections.discard(self)
        self.transport.abort()

    def _set_alarm(self, seconds: float, action: Callable[[], None]) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = self.loop.call_later(seconds, action)


def make_protocol(settings: Settings, places: int) -> type[asyncio.Protocol]:
    """Returns what makes the protocol of each connection of one server."""
    return cast(type[asyncio.Protocol], partial(BoundedProtocol, Crowd(settings, places)))
