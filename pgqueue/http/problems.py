"""Errors as ``application/problem+json`` (RFC 9457), each with a ``code`` that does not change."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import orjson
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.responses import Response

from pgqueue.errors import (
    BatchNotFoundError,
    DatabaseError,
    DatabaseUnreachableError,
    InvalidJobError,
    JobExistsError,
    JobNotFoundError,
    JobStateError,
    PayloadTooLargeError,
    PgqueueError,
    ScheduleExistsError,
    ScheduleNotFoundError,
    SchemaError,
    UnknownTaskError,
)
from pgqueue.http.desk import DrainingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fastapi import FastAPI
    from starlette.requests import Request

log = logging.getLogger(__name__)

MEDIA_TYPE: Final = "application/problem+json"
_AGAIN: Final = "1"  # seconds, as Retry-After

# The first that fits, so a class stands before its bases.
_STATUS: Final[tuple[tuple[type[PgqueueError], int, str], ...]] = (
    (PayloadTooLargeError, 413, "payload_too_large"),
    (InvalidJobError, 422, "invalid_job"),
    (UnknownTaskError, 422, "unknown_task"),
    (JobNotFoundError, 404, "job_not_found"),
    (BatchNotFoundError, 404, "batch_not_found"),
    (ScheduleNotFoundError, 404, "schedule_not_found"),
    (JobExistsError, 409, "job_exists"),
    (JobStateError, 409, "job_state"),
    (ScheduleExistsError, 409, "schedule_exists"),
    (DrainingError, 503, "draining"),
    (DatabaseUnreachableError, 503, "database_unreachable"),
    (SchemaError, 503, "schema"),
    (DatabaseError, 500, "database_error"),
)


class Problem(BaseModel):
    """What went wrong. More members may stand beside these: ``state``, ``job_id``, ``errors``."""

    model_config = ConfigDict(extra="allow")

    type: str = "about:blank"
    title: str = Field(description="The status in words.")
    status: int
    code: str = Field(description="What went wrong, for programs.", examples=["lease_lost"])
    detail: str = Field(description="What went wrong, for people.")


class ProblemError(Exception):
    """A problem to be answered; ``more`` are further members of it."""

    def __init__(
        self, status: int, code: str, detail: str, *, headers: dict[str, str] | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.headers = headers or {}
        self.more = more

    def response(self) -> Response:
        """As it goes to the client."""
        headers = {**({"Retry-After": _AGAIN} if self.status in {429, 503} else {}), **self.headers}
        body = {
            "type": "about:blank", "title": HTTPStatus(self.status).phrase, "status": self.status, "code": self.code,
            "detail": self.detail, **self.more,
        }  # fmt: skip
        return Response(orjson.dumps(body, default=str), self.status, headers, MEDIA_TYPE)


def of_error(error: PgqueueError) -> ProblemError:
    """What an error of pgqueue means over HTTP."""
    status, code = next((status, code) for kind, status, code in _STATUS if isinstance(error, kind))
    facts = {name: getattr(error, name) for name in ("job_id", "state") if hasattr(error, name)}
    return ProblemError(status, code, str(error), **facts)


def install(api: FastAPI) -> None:
    """Answer every error as a problem."""
    api.add_exception_handler(ProblemError, _problem)
    api.add_exception_handler(PgqueueError, failed)
    api.add_exception_handler(RequestValidationError, _invalid)
    api.add_exception_handler(HTTPException, _http)
    api.add_exception_handler(Exception, unexpected)


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For the schema: that these are answered as problems, besides those that any call may answer."""
    every = (*statuses, 400, 401, 403, 413, 415, 422, 429, 500, 503)
    return {
        status: {"description": HTTPStatus(status).phrase, "content": {MEDIA_TYPE: {"schema": _REFERENCE}}}
        for status in sorted(set(every))
    }


_REFERENCE: Final = {"$ref": "#/components/schemas/Problem"}


async def _problem(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ProblemError)  # noqa: S101
    return error.response()


async def failed(request: Request, error: Exception) -> Response:
    """An error of pgqueue; one that a client can't mean anything by is our own."""
    assert isinstance(error, PgqueueError)  # noqa: S101
    if not any(isinstance(error, kind) for kind, _, _ in _STATUS):
        return await unexpected(request, error)
    return of_error(error).response()


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)  # noqa: S101
    return invalid_body(error.errors(), place="")


def invalid_body(found: Sequence[Any], place: str = "body") -> Response:
    """What pydantic found wrong, as a problem."""
    errors = [
        {"at": ".".join(str(part) for part in (place, *one["loc"]) if part != ""), "message": one["msg"]}
        for one in found
    ]
    if any(one["type"] == "json_invalid" for one in found):
        return ProblemError(400, "invalid_json", f"the body is not JSON: {errors[0]['message']}").response()
    detail = "; ".join(f"{one['at']}: {one['message']}" for one in errors[:3])
    return ProblemError(422, "invalid_request", detail, errors=errors).response()


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)  # noqa: S101
    code = HTTPStatus(error.status_code).phrase.lower().replace(" ", "_")
    return ProblemError(error.status_code, code, str(error.detail), headers=dict(error.headers or {})).response()


async def unexpected(request: Request, error: Exception) -> Response:
    """Nobody's fault but ours: logged, and answered without what it was."""
    log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return ProblemError(500, "internal", "an unexpected error; the server's log has it").response()
