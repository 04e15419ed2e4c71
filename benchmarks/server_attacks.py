"""What `benchmarks.server_faults` does to a server: each attack returns how its connections ended.

An end is the status of the answer, `closed` for a connection that was closed without one, or `cut` for a reset.
"""

import asyncio
import re
import socket
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass

from benchmarks import server_requests
from benchmarks.server_requests import FORM, HOST, JSON, PART

STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) ")
LATEST_S = 60.0  # by which every connection must have ended
Ends = Counter[str]


@dataclass(frozen=True)
class Attack:
    """What is done to a server, how often, and how it may end."""

    name: str
    tries: int
    run: Callable[[int, int], Awaitable[Ends]]  # of a port and the tries
    allowed: frozenset[str]
    token: bool = False  # whether the server asks for one


async def read_end(reader: asyncio.StreamReader, *, whole: bool = False) -> str:
    """Returns how an exchange ends: at the first status, or, `whole`, all statuses until the server closes."""
    received = b""
    try:
        async with asyncio.timeout(LATEST_S):
            while part := await reader.read(65536):
                received += part
                if STATUS.search(received) and not whole:
                    break
    except ConnectionError:
        if not received:
            return "cut"
    except TimeoutError:
        return "never"
    found = STATUS.findall(received)
    return "+".join(status.decode() for status in found) if found else "closed"


async def send_once(port: int, content: Iterable[bytes], *, pause_s: float = 0.0, whole: bool = False) -> str:
    """Opens a connection, sends all parts, and returns how it ends; what it answers meanwhile ends the sending."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except ConnectionError:
        return "refused"
    end = asyncio.create_task(read_end(reader, whole=whole))
    try:
        for part in content:
            writer.write(part)
            await writer.drain()
            if pause_s:
                await asyncio.sleep(pause_s)
            if end.done():
                break
    except ConnectionError:
        pass
    try:
        return await end
    finally:
        writer.transport.abort()


async def send_many(
    port: int, contents: Iterable[Iterable[bytes]], *, pause_s: float = 0.0, whole: bool = False
) -> Ends:
    """Sends all at the same time, each on a connection of its own."""
    sending = [send_once(port, content, pause_s=pause_s, whole=whole) for content in contents]
    return Counter(await asyncio.gather(*sending))


async def send_slow_heads(port: int, tries: int) -> Ends:
    head = b"GET /index HTTP/1.1\r\n" + HOST + b"X-Slow: " + b"a" * 60
    return await send_many(port, [[head[i : i + 1] for i in range(len(head))]] * tries, pause_s=1.0)


async def send_slow_bodies(port: int, tries: int) -> Ends:
    slow = [FORM + b"Content-Length: 1000000\r\n\r\n" + PART, *[b"x"] * 60]
    return await send_many(port, [slow] * tries, pause_s=1.0)


async def read_nothing(port: int, tries: int) -> Ends:
    """Asks for a thousand items again and again, and reads none of it."""

    async def ask() -> str:
        bare = socket.socket()
        bare.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        bare.setblocking(False)
        await asyncio.get_running_loop().sock_connect(bare, ("127.0.0.1", port))
        reader, writer = await asyncio.open_connection(sock=bare, limit=1)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        ask = b"GET /items?limit=1000 HTTP/1.1\r\n" + HOST + b"\r\n"
        try:
            async with asyncio.timeout(LATEST_S):
                while True:  # until the server has had enough
                    writer.write(ask * 10)
                    await writer.drain()
                    await asyncio.sleep(0.5)
        except ConnectionError:
            return "cut"
        except TimeoutError:
            return "never"
        finally:
            writer.transport.abort()

    return Counter(await asyncio.gather(*(ask() for _ in range(tries))))


async def send_half(port: int, tries: int) -> Ends:
    """Goes away in the middle of an upload."""

    async def go_away(number: int) -> str:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(FORM + b"Content-Length: 100000\r\n\r\n" + PART + bytes(50 * number))
        await writer.drain()
        writer.transport.abort()
        return "gone"

    return Counter(await asyncio.gather(*(go_away(number) for number in range(tries))))


async def send_declared(port: int, tries: int) -> Ends:
    body = [FORM + b"Content-Length: 10000000000\r\n\r\n" + PART, *[bytes(1_000_000)] * 30]
    return await send_many(port, [body] * tries)


async def send_chunked(port: int, tries: int) -> Ends:
    chunk = b"f4240\r\n" + bytes(1_000_000) + b"\r\n"
    start = b"%x\r\n" % len(PART) + PART + b"\r\n"
    body = [FORM + b"Transfer-Encoding: chunked\r\n\r\n" + start, *[chunk] * 30]
    return await send_many(port, [body] * tries)


async def open_idle(port: int, tries: int) -> Ends:
    return await send_many(port, [[]] * tries)


async def stay_after_answer(port: int, tries: int) -> Ends:
    ask = b"GET /healthz HTTP/1.1\r\n" + HOST + b"\r\n"
    return await send_many(port, [[ask]] * tries, whole=True)


async def search_at_once(port: int, tries: int) -> Ends:
    ask = JSON + b'Content-Length: 9\r\n\r\n{"id": 7}'
    return await send_many(port, [[ask]] * tries)


def repeat(requests: Sequence[bytes], *, whole: bool = True) -> Callable[[int, int], Awaitable[Ends]]:
    """Returns an attack that sends these requests in turn, each on its own connection, until the server closes it."""

    async def attack(port: int, tries: int) -> Ends:
        return await send_many(port, [[requests[i % len(requests)]] for i in range(tries)], whole=whole)

    return attack


def make_attack(name: str, tries: int, requests: Sequence[bytes], allowed: str, *, token: bool = False) -> Attack:
    """Returns an attack by these requests, sent in turn."""
    return Attack(name, tries, repeat(requests), frozenset(allowed.split()), token)


def list_attacks() -> list[Attack]:
    """Returns all attacks, and what each may end in."""
    sent = server_requests
    return [
        Attack("heads, a byte a second", 1000, send_slow_heads, frozenset({"408"})),
        Attack("bodies, a byte a second", 200, send_slow_bodies, frozenset({"504"})),
        Attack("answers that are not read", 30, read_nothing, frozenset({"cut"})),
        Attack("uploads broken off", 300, send_half, frozenset({"gone"})),
        Attack("10 GB declared", 50, send_declared, frozenset({"413"})),
        Attack("30 MB in chunks", 50, send_chunked, frozenset({"413", "503"})),
        Attack("connections, idle", 1000, open_idle, frozenset({"closed"})),
        Attack("connections, kept after an answer", 1000, stay_after_answer, frozenset({"200"})),
        Attack("searches at once", 1000, search_at_once, frozenset({"200", "503"})),
        make_attack("foreign Host (DNS rebinding)", 300, sent.list_foreign_hosts(), "421"),
        make_attack("other sites' pages", 320, sent.list_forgeries(), "403"),
        make_attack("no or a wrong token", 360, sent.list_strangers(), "401", token=True),
        make_attack("smuggled requests", 340, sent.SMUGGLING, "400"),
        make_attack("path traversal", 240, sent.list_traversals(), "404 422"),
        make_attack("Range", 200, sent.list_ranges(), "200"),
        make_attack("decompression bombs", 20, sent.list_bombs(), "200 422 503 504"),
        make_attack("forms", 14, sent.list_forms(), "400 413 422"),
        make_attack("JSON bodies", 100, sent.list_json(), "413 422"),
    ]
