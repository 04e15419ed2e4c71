"""How much one client may ask, and how much work may wait."""

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

from starlette.types import Message, Receive

from indistill.retrieval.serve.problems import Refusal

MAX_CLIENTS = 10_000  # remembered at once; the ones seen last stay
BURST_S = 5.0  # a client that was quiet may send as much at once as in this time


class RateLimit:
    """A token bucket for each client.

    Args:
        rate: of requests per second; 0 for no limit.
        clock: seconds.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = monotonic) -> None:
        self._rate, self._burst, self._clock = rate, max(1.0, BURST_S * rate), clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens left, at which time

    def take(self, client: str, cost: float = 1.0) -> float:
        """Takes `cost` requests from the client's bucket and returns 0, or the seconds until there are enough."""
        if self._rate == 0:
            return 0.0
        now = self._clock()
        left, seen = self._buckets.pop(client, (self._burst, now))
        left = min(self._burst, left + (now - seen) * self._rate)
        wait = max(0.0, (cost - left) / self._rate)
        self._buckets[client] = (left if wait else left - cost, now)
        if len(self._buckets) > MAX_CLIENTS:
            self._buckets.popitem(last=False)
        return wait


class Room:
    """A bounded number of requests at work at once.

    Args:
        places: how many.
        patience_s: when requests take longer than this, fewer are let in, down to one at a time: those have an answer
            in time and the others are told at once, instead of all being too late. Shorter ones open it again.
        clock: seconds.
    """

    def __init__(self, places: int, patience_s: float = math.inf, clock: Callable[[], float] = monotonic) -> None:
        self._places, self._patience_s, self._clock = places, patience_s, clock
        self._taken, self._allowed = 0, float(places)

    @contextmanager
    def enter(self) -> Iterator[None]:
        """Takes a place for the time of the block.

        Raises:
            Refusal: there is none.
        """
        if self._taken >= int(self._allowed):
            raise Refusal(503, "too many requests are waiting; try again in a second", {"Retry-After": "1"})
        self._taken += 1
        started = self._clock()
        try:
            yield
        finally:
            self._taken -= 1
            if self._clock() - started > self._patience_s:
                self._allowed = max(1.0, 0.9 * self._allowed)
            else:
                self._allowed = min(float(self._places), self._allowed + 0.2)


class Uploads:
    """How many bytes of bodies are held: of each, and of all together.

    Args:
        largest: bytes of one body.
        held: bytes of all bodies that are being read or worked on.
    """

    def __init__(self, largest: int, held: int) -> None:
        self.largest, self.free = largest, held

    def open(self) -> "Upload":
        """Returns the count of one more body."""
        return Upload(self)

    def check_length(self, header: str) -> None:
        """Raises Refusal if a body is said to be too large; an absent or odd header says nothing."""
        if header.isdigit() and int(header) > self.largest:
            raise self.make_refusal()

    def make_refusal(self) -> Refusal:
        """Returns the answer to an upload that is too large."""
        return Refusal(413, f"the upload is larger than the limit of {self.largest / 1e6:g} MB")


class Upload:
    """The bytes of one body, counted as they come, whatever its length was said to be; close it at the request's end.

    Args:
        uploads: what all of them share.
    """

    def __init__(self, uploads: Uploads) -> None:
        self._uploads, self._held = uploads, 0

    def bound(self, receive: Receive) -> Receive:
        """Returns `receive` that raises Refusal when this body is too large, or all together are."""

        async def receive_bounded() -> Message:
            message = await receive()
            self._take(len(message.get("body", b"")))
            return message

        return receive_bounded

    def close(self) -> None:
        """Gives back the room that the upload held."""
        self._uploads.free += self._held
        self._held = 0

    def _take(self, size: int) -> None:
        if self._held + size > self._uploads.largest:
            raise self._uploads.make_refusal()
        if size > self._uploads.free:
            raise Refusal(503, "too many uploads at once; try again in a second", {"Retry-After": "1"})
        self._uploads.free -= size
        self._held += size
