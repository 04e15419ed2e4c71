"""The application: routes, page, errors in one form, and the guard before them all."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib import resources

from fastapi import Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from fastapi.security import HTTPBearer
from starlette.exceptions import HTTPException

from indistill import __version__
from indistill.errors import IndexFolderError
from indistill.retrieval.opening import Location
from indistill.retrieval.serve.guard import Guard
from indistill.retrieval.serve.problems import SECURITY_HEADERS, Refusal, make_refusal
from indistill.retrieval.serve.routes import health, router
from indistill.retrieval.serve.service import Service
from indistill.retrieval.serve.settings import Settings

LOGGER = logging.getLogger("indistill.serve")
PAGE = "page.html"
STATIC = {"page.js": "text/javascript", "page.css": "text/css", "icon.svg": "image/svg+xml"}


def make_app(folder: Location, settings: Settings) -> FastAPI:
    """Returns the service of an index as an ASGI application; the index is open, and it answers when it is started.

    Args:
        folder: the index folder, or a collection of Milvus.
        settings: limits, token and hosts.

    Raises:
        IndexFolderError, ModelError: the index cannot be opened.
    """
    service = Service(folder, settings)

    @asynccontextmanager
    async def run_service(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await service.stop()

    app = FastAPI(
        title="indistill",
        version=__version__,
        summary="Image search in an index.",
        docs_url=None,  # its scripts come from elsewhere
        redoc_url=None,
        lifespan=run_service,
    )
    app.state.service = service
    described = [] if settings.token is None else [Depends(HTTPBearer(auto_error=False))]  # the guard looks at it
    app.include_router(router, dependencies=described)
    app.include_router(health)
    _add_page(app)
    _add_errors(app)
    app.add_middleware(Guard, settings=settings, observe=service.metrics.observe_request)
    return app


def _add_page(app: FastAPI) -> None:
    """Serves the search page and its files, which are read once."""
    files = resources.files("indistill.retrieval.serve")
    page = files.joinpath(PAGE).read_bytes()
    static = {name: files.joinpath(name).read_bytes() for name in STATIC}
    headers = {"Cache-Control": "no-cache"}

    @app.get("/", include_in_schema=False)
    async def show_page() -> Response:
        return Response(page, media_type="text/html", headers=headers)

    @app.get("/static/{name}", include_in_schema=False)
    async def show_static(name: str) -> Response:
        if name not in static:
            raise Refusal(404, "there is no such file")
        return Response(static[name], media_type=STATIC[name], headers=headers)


def _add_errors(app: FastAPI) -> None:
    """Gives every error the one form."""

    @app.exception_handler(HTTPException)
    async def answer_refusal(_: Request, error: HTTPException) -> Response:
        return make_refusal(error.status_code, str(error.detail), error.headers)

    @app.exception_handler(RequestValidationError)
    async def answer_invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return make_refusal(422, f"{first['loc'][-1]}: {first['msg']}")

    @app.exception_handler(IndexFolderError)
    async def answer_damage(_: Request, error: IndexFolderError) -> Response:
        LOGGER.error("%s", error)
        return make_refusal(503, "the index cannot be read now; try again in a second", {"Retry-After": "1"})

    @app.exception_handler(Exception)
    async def answer_bug(_: Request, __: Exception) -> Response:  # uvicorn logs it
        return make_refusal(500, "the server failed; its log says more", SECURITY_HEADERS)
