"""How an index is served: where, to whom, and how much of it."""

import ipaddress
import math
from dataclasses import dataclass

from indistill.errors import InputError
from indistill.preprocess import MAX_PIXELS

MIN_TOKEN = 16  # signs
MAX_HITS = 1000
RATE_ELSEWHERE = 10.0  # searches per second and client, off loopback


@dataclass(frozen=True)
class Settings:
    """What `indistill serve` is told.

    Attributes:
        host: the address to listen on; off loopback a token is required.
        port: 0 for any that is free.
        token: what clients must show, or None.
        allow_hosts: further names that the Host header may have, without a port.
        max_upload_bytes: of a request's body.
        uploads_bytes: of all bodies that are being read or worked on.
        max_pixels: of an image, width times height.
        rate: searches per second and client, 0 for no limit; default none on loopback and 10 elsewhere.
        time_limit_s: for a request, its upload included.
        head_limit_s: for the head of a request, from the connection or the answer before it.
        stall_limit_s: for a client to take some of its answer.
        batch_size: images of one inference at most.
        queue_size: searches at work at once, from the end of the upload to the answer; more are told to come back.
        connections: at once; above them the ones that wait for a request make room.
        poll_s: seconds between looks at the index folder for a newer generation.
        threads: of ONNX Runtime; 0 for one for each core.

    Raises:
        InputError: a value is out of range, or a token is missing or too short.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    allow_hosts: tuple[str, ...] = ()
    max_upload_bytes: int = 20_000_000
    uploads_bytes: int = 256_000_000
    max_pixels: int = MAX_PIXELS
    rate: float | None = None
    time_limit_s: float = 30.0
    head_limit_s: float = 10.0
    stall_limit_s: float = 10.0
    batch_size: int = 16
    queue_size: int = 64
    connections: int = 4000
    poll_s: float = 1.0
    threads: int = 0

    def __post_init__(self) -> None:
        if self.token is None and not self.is_local:
            raise InputError(
                f"serving on {self.host} needs a token, as others can reach it: set INDISTILL_TOKEN, or name a file by "
                "--token-file; or serve on --host 127.0.0.1"
            )
        if self.token is not None and (len(self.token) < MIN_TOKEN or not self.token.isascii() or " " in self.token):
            raise InputError(
                f"the token must be {MIN_TOKEN} or more ASCII signs without spaces, one of {len(self.token)} was "
                'given; python -c "import secrets; print(secrets.token_urlsafe())" makes one'
            )
        if self.rate is not None and not (math.isfinite(self.rate) and self.rate >= 0):
            raise InputError(f"rate must be 0 (no limit) or more searches per second, {self.rate} was given")
        positive = (
            "max_upload_bytes",
            "uploads_bytes",
            "max_pixels",
            "time_limit_s",
            "head_limit_s",
            "stall_limit_s",
            "batch_size",
            "queue_size",
            "connections",
            "poll_s",
        )
        for name in positive:
            if not getattr(self, name) > 0:
                raise InputError(f"{name} must be above 0, {getattr(self, name)} was given")

    @property
    def is_local(self) -> bool:
        """Whether the address is reached from this machine alone."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @property
    def searches_per_second(self) -> float:
        """The rate in force for each client; 0 for no limit."""
        if self.rate is not None:
            return self.rate
        return 0.0 if self.is_local else RATE_ELSEWHERE

    @property
    def known_hosts(self) -> frozenset[str]:
        """What the Host header may name, in lower case, without port and brackets."""
        names = {self.host, "localhost", "127.0.0.1", "::1", *self.allow_hosts}
        return frozenset(name.lower().strip("[]") for name in names)
