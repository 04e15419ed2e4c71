"""Requests that `benchmarks.server_faults` sends: what no honest client would, and what must not hurt."""

from benchmarks.served import TOKEN, encode_flat

HOST = b"Host: localhost\r\n"
FORM = b"POST /search HTTP/1.1\r\n" + HOST + b"Content-Type: multipart/form-data; boundary=b\r\n"
JSON = b"POST /search HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
PART = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
END = b"\r\n--b--\r\n"


def ask(line: str, *headers: str, body: bytes = b"") -> bytes:
    """Returns a request that has the server close the connection after it."""
    lines = [line + " HTTP/1.1", *headers, "Connection: close"]
    if body:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


def upload(content: bytes) -> bytes:
    body = PART + content + END
    return FORM + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def form(body: bytes, boundary: str = "b") -> bytes:
    kind = f"Content-Type: multipart/form-data; boundary={boundary}"
    return ask("POST /search", "Host: localhost", kind, body=body)


FIELD = b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n'
BODY = b'{"id": 7}'
HOSTS = ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "evil.example:8000", "localhost@evil", "")
SITES = ("Origin: https://evil.example", "Origin: null", "Sec-Fetch-Site: cross-site", "Sec-Fetch-Site: same-site")
TRAVERSALS = ("/images/../../etc/passwd", "/images/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/images/1/../../x", "//etc/passwd",
              "/static/..%2f..%2fapp.py", "/static/%00page.js", "/static/page.js%00.png", "/images/1%00", "/images/-1",
              "/images/99999999999999999999999", "/items/..%5c..%5cx", "/static//etc/passwd")  # fmt: skip
RANGES = ("bytes=0-", "bytes=" + ",".join(f"{i}-" for i in range(500)), "bytes=-1", "bytes=9-1", "x" * 5000)
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: localhost\r\n\r\n"
SMUGGLING = [
    JSON + b"Content-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    JSON + b"Content-Length: 9\r\nContent-Length: 50\r\n\r\n" + BODY + SMUGGLED,
    JSON + b"Content-Length: +9\r\n\r\n" + BODY + SMUGGLED,
    JSON + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    JSON + b"Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    JSON + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + SMUGGLED,
    JSON + b"Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n" + SMUGGLED,
    JSON + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n" + SMUGGLED,
    JSON + b"Transfer-Encoding: chunked\r\n\r\n0x9\r\n" + BODY + b"\r\n0\r\n\r\n" + SMUGGLED,
    JSON + b"X: a\r\n Content-Length: 9\r\n\x00: b\r\n\r\n" + BODY + SMUGGLED,
    b"GET /healthz HTTP/1.1\r\n" + HOST + b"Host: evil.example\r\n\r\n" + SMUGGLED,
    b"GET /healthz HTTP/1.1\r\n\r\n" + SMUGGLED,
    b"GET  /healthz HTTP/1.1\r\n" + HOST + b"\r\n" + SMUGGLED,
    bytes(range(256)) * 40,
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # somebody speaks TLS
]
FORGING = (("POST", "/search"), ("PUT", "/items/1"), ("DELETE", "/items/1"), ("OPTIONS", "/search"))
PROTECTED = ("/index", "/images/1", "/metrics", f"/index?token={TOKEN}")
CREDENTIALS = (
    "X: y",
    "Authorization: Bearer wrong",
    f"Authorization: Bearer {TOKEN[:-1]}",
    f"Authorization: Basic {TOKEN}",
    "Authorization: Bearer \xff\xfe",
    f"Cookie: token={TOKEN}",
)


def list_foreign_hosts() -> list[bytes]:
    return [ask("GET /index", f"Host: {name}") for name in HOSTS]


def list_forgeries() -> list[bytes]:
    return [
        ask(f"{method} {path}", "Host: localhost", site, "Content-Type: application/json", body=BODY)
        for method, path in FORGING
        for site in SITES
    ]


def list_strangers() -> list[bytes]:
    return [ask(f"GET {path}", "Host: localhost", shown) for path in PROTECTED for shown in CREDENTIALS]


def list_traversals() -> list[bytes]:
    return [ask(f"GET {path}", "Host: localhost") for path in TRAVERSALS]


def list_ranges() -> list[bytes]:
    return [ask("GET /images/1", "Host: localhost", f"Range: {wanted}") for wanted in RANGES]


def list_bombs() -> list[bytes]:
    """Returns small files of many pixels, below and above what is decoded."""
    sizes = (
        (9400, 9400, "PNG"),
        (30_000, 3000, "PNG"),
        (9400, 9400, "GIF"),
        (16_000, 5500, "JPEG"),
        (9000, 9000, "TIFF"),
    )
    return [upload(encode_flat(*size)) for size in sizes]


def list_forms() -> list[bytes]:
    """Returns forms that are hard to read: of many fields, long heads, many heads, almost only boundaries."""
    return [
        form(FIELD * 10_000 + b"--b--\r\n"),
        form(PART[:-2] + b"X-Large: " + b"a" * 19_000_000),
        form(PART[:-2] + b"X: y\r\n" * 1_000_000 + b"\r\n"),
        form(b"\r\n--" * 4_000_000),
        form((PART + b"x\r\n") * 100_000),
        form(PART + b"\r\n--" * 4_000_000 + END, "b" * 5000),
        form(b"x" * 1000, ""),
    ]


def list_json() -> list[bytes]:
    bodies = (b"[" * 19_000_000, b'{"id": ' + b"9" * 900 + b"}", b"\xff" * 900, b'{"id": 1e400}', b"[" * 900)
    return [ask("POST /search", "Host: localhost", "Content-Type: application/json", body=body) for body in bodies]
