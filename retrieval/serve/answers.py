"""What the routes answer, typed: these models are the OpenAPI description too."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Answer(BaseModel):
    """Plain data that is not changed."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class HitAnswer(Answer):
    """An image found."""

    rank: int = Field(description="from 1")
    id: int
    path: str = Field(description="relative to the gallery's root, or absolute")
    label: str | None
    score: float = Field(description="cosine of the angle to the query")


class SearchAnswer(Answer):
    """The nearest images, best first; equal scores in the order of ids."""

    generation: int = Field(description="of the index that answered")
    hits: list[HitAnswer]


class SearchById(Answer):
    """A search by an image of the index."""

    id: int = Field(ge=0, le=2**63 - 1)


class ItemAnswer(Answer):
    """An image of the index."""

    id: int
    path: str
    label: str | None
    sha256: str
    size_bytes: int
    modified_ns: int


class ItemsAnswer(Answer):
    """Some images of the index, by id."""

    items: list[ItemAnswer]
    next_after: int | None = Field(description="the `after` of the next request; null at the end")


class IndexAnswer(Answer):
    """What is served, and within which limits."""

    items: int
    dimension: int
    factory: str
    generation: int
    model_sha256: str
    max_upload_bytes: int
    max_hits: int


class StateAnswer(Answer):
    """Whether the server runs, or is ready."""

    status: Literal["ok", "ready", "stopping"]


class ErrorDetail(Answer):
    """Why a request was refused."""

    code: str
    message: str


class ErrorAnswer(Answer):
    """Every error has this form."""

    error: ErrorDetail
