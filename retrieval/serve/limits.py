"""How much one client may ask, and how much work may wait."""

from collections import OrderedDict
from collections.abc import Callable
from time import monotonic

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
    """A bounded number of requests at work at once; use it as a context.

    Args:
        places: how many.

    Raises:
        Refusal: on entering, if all places are taken.
    """

    def __init__(self, places: int) -> None:
        self._free = places

    def __enter__(self) -> None:
        if self._free == 0:
            raise Refusal(503, "too many requests are waiting; try again in a second", {"Retry-After": "1"})
        self._free -= 1

    def __exit__(self, *_: object) -> None:
        self._free += 1
