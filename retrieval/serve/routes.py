"""The routes, and what they take."""

import asyncio
from functools import partial
from typing import Annotated, Any, cast

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from indistill.errors import InputError
from indistill.retrieval.protocol import SearchIndex
from indistill.retrieval.serve.answers import (
    ErrorAnswer,
    HitAnswer,
    IndexAnswer,
    ItemAnswer,
    ItemsAnswer,
    SearchAnswer,
    SearchById,
    StateAnswer,
)
from indistill.retrieval.serve.problems import Refusal
from indistill.retrieval.serve.service import Service, Wanted
from indistill.retrieval.serve.settings import MAX_HITS
from indistill.retrieval.where import Where, parse_where

IMAGE_FIELD = "image"
MAX_CONDITION = 1000  # signs
MAX_PAGE = 1000
MAX_JSON_BYTES = 1000
# As the body has two forms, of which FastAPI can describe one.
SEARCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": [IMAGE_FIELD],
                    "properties": {IMAGE_FIELD: {"type": "string", "format": "binary"}},
                }
            },
            "application/json": {"schema": SearchById.model_json_schema()},
        },
    }
}


def list_errors(*codes: int) -> dict[int | str, dict[str, Any]]:
    """Returns the description of a route's errors: of those that any request can have, and of its own `codes`."""
    return {code: {"model": ErrorAnswer} for code in sorted({400, 408, 421, 500, 503, 504, *codes})}


health = APIRouter()
router = APIRouter(responses=list_errors(401, 429))


def get_service(request: Request) -> Service:
    """Returns the service of the app that a request came to."""
    return cast(Service, request.app.state.service)


Serving = Annotated[Service, Depends(get_service)]
ItemId = Annotated[int, Path(ge=0, le=2**63 - 1, alias="id")]


@router.post("/search", openapi_extra=SEARCH_BODY, responses=list_errors(403, 404, 413, 415, 422))
async def search(
    request: Request,
    service: Serving,
    k: Annotated[int, Query(ge=1, le=MAX_HITS, description="hits at most")] = 10,
    threshold: Annotated[float | None, Query(ge=-1, le=1, description="the lowest score")] = None,
    where: Annotated[
        str | None, Query(max_length=MAX_CONDITION, description="a condition, as label = 'dog' and size > 10000")
    ] = None,
) -> SearchAnswer:
    """The nearest images: to an uploaded one, or to one of the index by its id."""
    condition, wanted = read_condition(where), await read_wanted(request)
    with service.searches.enter():  # now: slow uploads would keep the places from others
        opened, hits = await service.search(wanted, k, threshold, condition)
    answers = [HitAnswer(rank=h.rank, id=h.id, path=h.path, label=h.label, score=h.score) for h in hits]
    return SearchAnswer(generation=opened.index.manifest.generation, hits=answers)


@router.get(
    "/images/{id}",
    response_class=Response,
    responses={
        200: {"content": {"image/jpeg": {}}},
        304: {"description": "Not changed since the ETag in If-None-Match"},
        **list_errors(404, 422),
    },
)
async def show_image(
    request: Request,
    service: Serving,
    item_id: ItemId,
    size: Annotated[int, Query(ge=16, le=1024, description="the longest side, in pixels")] = 256,
) -> Response:
    """A thumbnail of a catalogued image, as JPEG."""
    opened = service.generations.current
    item = await service.find_item(opened, item_id)
    headers = {"ETag": f'"{item.sha256}-{size}"', "Cache-Control": "private, no-cache"}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    return Response(await service.paint(opened, item, size), media_type="image/jpeg", headers=headers)


@router.get("/items/{id}", responses=list_errors(404, 422))
async def show_item(service: Serving, item_id: ItemId) -> ItemAnswer:
    """What the catalogue says of an image."""
    item = await service.find_item(service.generations.current, item_id)
    return ItemAnswer.model_validate(item, from_attributes=True)


@router.get("/items", response_model=ItemsAnswer, responses=list_errors(422))
async def list_items(
    service: Serving,
    after: Annotated[int, Query(ge=-1, le=2**63 - 1, description="begin behind this id")] = -1,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE)] = 100,
) -> Response:
    """The catalogue, page by page, by id."""
    listing = partial(list_page, service.generations.current.index, after, limit)
    return Response(await asyncio.to_thread(listing), media_type="application/json")


def list_page(index: SearchIndex, after: int, limit: int) -> str:
    """Returns some items as JSON; of a thousand it takes long, and others must not wait for it."""
    found = index.list_page(after, limit)
    items = [ItemAnswer.model_validate(item, from_attributes=True) for item in found]
    return ItemsAnswer(items=items, next_after=items[-1].id if len(items) == limit else None).model_dump_json()


@router.get("/index")
async def describe_index(service: Serving) -> IndexAnswer:
    """What is served, and within which limits."""
    manifest = service.generations.current.index.manifest
    return IndexAnswer(
        items=manifest.items,
        dimension=manifest.dimension,
        factory=manifest.factory,
        generation=manifest.generation,
        model_sha256=manifest.model_sha256,
        max_upload_bytes=service.settings.max_upload_bytes,
        max_hits=MAX_HITS,
    )


@health.get("/healthz", responses=list_errors())
async def tell_health() -> StateAnswer:
    """The process answers."""
    return StateAnswer(status="ok")


@health.get("/readyz", responses=list_errors())
async def tell_readiness(service: Serving) -> StateAnswer:
    """An index is open and searches are answered."""
    if not service.batcher.is_running:
        raise Refusal(503, "not ready")
    return StateAnswer(status="ready")


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
async def show_metrics(service: Serving) -> Response:
    """Figures for Prometheus."""
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_LATEST)


def read_condition(text: str | None) -> Where | None:
    """Returns the condition; none for no text. Raises Refusal."""
    if text is None or not text.strip():
        return None
    try:
        return parse_where(text)
    except InputError as error:
        raise Refusal(400, str(error)) from error


async def read_wanted(request: Request) -> Wanted:
    """Returns the image or the id of a request's body. Raises Refusal."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await read_id(request)
    if kind == "multipart/form-data":
        return await read_upload(request)
    raise Refusal(415, 'send an image as multipart/form-data, or {"id": N} as application/json')


async def read_id(request: Request) -> int:
    """Returns the id in a JSON body. Raises Refusal."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_JSON_BYTES:
            raise Refusal(413, f'the body is larger than {MAX_JSON_BYTES} bytes; {{"id": N}} is all that it may hold')
    try:
        return SearchById.model_validate_json(body).id
    except ValidationError as error:
        raise Refusal(422, 'the body must be {"id": N}, with the id of an image of the index') from error


async def read_upload(request: Request) -> bytes:
    """Returns the file in a form, which is never written to a disk. Raises Refusal."""
    parser = MultiPartParser(request.headers, request.stream(), max_files=1, max_fields=1)
    parser.spool_max_size = 0  # of its temporary file, in memory: no bound, as the guard has one
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise Refusal(400, error.message) from error
    try:
        uploads = [value for value in form.getlist(IMAGE_FIELD) if isinstance(value, UploadFile)]
        if len(uploads) != 1:
            raise Refusal(422, f"the form must have one file, in the field {IMAGE_FIELD}")
        return await uploads[0].read()
    finally:
        await form.close()
