"""Runs the application until it is told to stop."""

import math
import signal
import socket
from collections.abc import Callable

import uvicorn
from fastapi import FastAPI

from indistill.errors import InputError, describe_os_error
from indistill.retrieval.opening import Location
from indistill.retrieval.serve.app import make_app
from indistill.retrieval.serve.settings import Settings

BACKLOG = 128


def run_server(folder: Location, settings: Settings, on_start: Callable[[str], None]) -> None:
    """Serves an index until SIGINT or SIGTERM; requests that have begun are answered first.

    Args:
        folder: the index folder, or a collection of Milvus.
        settings: address, limits, token and hosts.
        on_start: called with the URL when the address is taken and the index is open.

    Raises:
        IndexFolderError, ModelError: the index cannot be opened.
        InputError: the address cannot be had.
        KeyboardInterrupt: after SIGINT.
    """
    app = make_app(folder, settings)
    with open_socket(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        # uvicorn stops in good order and then raises the signal again, for whoever handled it before
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # shells have background jobs ignore it
        on_start(f"http://{name_host(settings.host)}:{port}/")
        make_server(app, settings).run(sockets=[listener])


def make_server(app: FastAPI, settings: Settings) -> uvicorn.Server:
    """Returns uvicorn's server of the application, which is still to be run on a socket."""
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,  # it would log queries
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=math.ceil(settings.time_limit_s),
    )
    return uvicorn.Server(config)


def open_socket(host: str, port: int) -> socket.socket:
    """Returns a socket that listens, or raises InputError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(address)
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot listen on {host} port {port}: {reason}; choose another --host or --port") from error
    return listener


def name_host(host: str) -> str:
    """Returns a host as it stands in a URL."""
    return f"[{host}]" if ":" in host else host
