"""Runs the application until it is told to stop."""

import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from indistill.errors import InputError, describe_os_error
from indistill.retrieval.opening import Location
from indistill.retrieval.serve.app import make_app
from indistill.retrieval.serve.connections import make_protocol
from indistill.retrieval.serve.settings import Settings

LOGGER = logging.getLogger("indistill.serve")
BACKLOG = 2048  # connections that wait to be accepted; the system may allow fewer
OTHER_FILES = 200  # descriptors that are no connections
ANSWER_S = 1  # for requests that have begun, once the server is told to stop
STOP_S = 1.3  # until it has stopped, whatever it does


class StoppingServer(uvicorn.Server):
    """uvicorn's server, which ends in time: a decoding that lasts, or an index that opens, is not waited for."""

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Ends the process itself where the server has not ended in time."""
        if not self.should_exit:
            watch = threading.Timer(STOP_S, end_now, (128 + sig,))
            watch.daemon = True  # and never cancelled: the interpreter's own end may wait too
            watch.start()
        super().handle_exit(sig, frame)


def end_now(code: int) -> None:
    """Ends the process. Nothing is lost: a server writes nothing."""
    LOGGER.warning("stopped without waiting for the work that runs")
    os._exit(code)


def run_server(folder: Location, settings: Settings, on_start: Callable[[str], None]) -> None:
    """Serves an index until SIGINT or SIGTERM; requests that have begun have a second to be answered.

    Args:
        folder: the index folder, or a collection of Milvus.
        settings: address, limits, token and hosts.
        on_start: called with the URL when the address is taken and the index is open.

    Raises:
        IndexFolderError, ModelError: the index cannot be opened.
        InputError: the address cannot be had.
        KeyboardInterrupt: after SIGINT.
        SystemExit: after SIGTERM, with 143.
    """
    app = make_app(folder, settings)
    with open_socket(settings.host, settings.port) as listener:
        port = listener.getsockname()[1]
        # uvicorn stops in good order and then raises the signal again, for whoever handled it before
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
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
        http=make_protocol(settings, min(settings.connections, allow_files(settings.connections))),
        ws="none",
        backlog=BACKLOG,
        timeout_graceful_shutdown=ANSWER_S,
    )
    return StoppingServer(config)


def allow_files(connections: int) -> int:
    """Returns for how many connections there are descriptors, after asking the system for as many as needed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + OTHER_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(1, soft - OTHER_FILES)


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
