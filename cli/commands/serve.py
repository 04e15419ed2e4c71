"""`indistill serve`."""

from pathlib import Path
from typing import Annotated

import typer

from indistill.cli.options import CollectionModelOption, IndexArgument


def serve(
    index: IndexArgument,
    host: Annotated[
        str, typer.Option("--host", help="The address to listen on; others than this machine's own need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0 for any that is free.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Holds the token that clients must show; else the variable INDISTILL_TOKEN does.",
        ),
    ] = None,
    allow_host: Annotated[
        list[str] | None,
        typer.Option("--allow-host", metavar="NAME", help="A further name of this server in URLs; repeatable."),
    ] = None,
    max_upload_mb: Annotated[float, typer.Option("--max-upload-mb", min=0, max=1e6, help="The largest upload.")] = 20.0,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate",
            help="Searches per second that one client may make; 0 for any number.",
            show_default="0 on this machine, 10 elsewhere",
        ),
    ] = None,
    model: CollectionModelOption = None,
) -> None:
    """Serve an index: a search page and an HTTP API. See docs/serve.md."""
    from indistill.cli.serving import log_to_stderr, read_token, require_extra
    from indistill.cli.stdout import emit

    require_extra()
    from indistill.retrieval.opening import introduce_model, locate_index
    from indistill.retrieval.serve.server import run_server
    from indistill.retrieval.serve.settings import Settings

    settings = Settings(
        host=host,
        port=port,
        token=read_token(token_file),
        allow_hosts=tuple(allow_host or ()),
        max_upload_bytes=int(max_upload_mb * 1e6),
        rate=rate,
    )
    location = locate_index(index)
    introduce_model(location, model)
    log_to_stderr()
    run_server(location, settings, emit)
