"""The calls that are made for every job, without the framework's way to them, which costs more than they do.

The routes themselves are the framework's: it describes them, and serves whoever comes with something unusual.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import Response

from pgqueue.errors import PgqueueError
from pgqueue.http import models, producers, workers
from pgqueue.http.auth import authenticate
from pgqueue.http.limits import BodyTooLargeError
from pgqueue.http.problems import ProblemError, failed, invalid_body, unexpected

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from starlette.types import ASGIApp, Receive, Scope, Send


@dataclass(frozen=True, slots=True)
class Call:
    """One of them: its function, its body, what a token needs for it, how its success is answered."""

    function: Callable[..., Awaitable[Any]]
    body: type[BaseModel]
    scope: str
    status: int = 200


_CALLS: Final = {
    "/jobs": Call(producers.submit, models.NewJob, "enqueue", 201),
    "/jobs:batch": Call(producers.submit_many, models.NewJobs, "enqueue", 201),
    "/jobs/lease": Call(workers.lease, models.WantedLease, "work"),
    "/jobs:finish": Call(workers.finish, models.Ends, "work"),
    "/heartbeats": Call(workers.heartbeat, models.Heartbeat, "work"),
}
_ENDS: Final = {
    "ack": Call(workers.ack, models.Ack, "work"),
    "fail": Call(workers.fail, models.Fail, "work"),
    "release": Call(workers.release, models.Release, "work"),
}
_END: Final = re.compile(r"/jobs/([1-9][0-9]{0,17})/(ack|fail|release)", re.ASCII)
_UNUSUAL: Final = frozenset({b"idempotency-key"})


class Fast:
    """Middleware: serves the calls of a job's way, and passes on everything else."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        found = _find(scope)
        if found is None:
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            response = await _answer(request, *found)
        except BodyTooLargeError:
            return
        except ProblemError as error:
            response = error.response()
        except PgqueueError as error:
            response = await failed(request, error)
        except ValidationError as error:
            response = invalid_body(error.errors(include_url=False, include_input=False, include_context=False))
        except Exception as error:  # noqa: BLE001 - it is logged
            response = await unexpected(request, error)
        await response(scope, receive, send)


def _find(scope: Scope) -> tuple[Call, dict[str, Any]] | None:
    if scope["type"] != "http" or scope["method"] != "POST" or any(name in _UNUSUAL for name, _ in scope["headers"]):
        return None
    path: str = scope["path"].removeprefix(scope.get("root_path", ""))
    call = _CALLS.get(path)
    if call is not None:
        return call, {}
    end = _END.fullmatch(path)
    return None if end is None else (_ENDS[end[2]], {"job_id": int(end[1])})


async def _answer(request: Request, call: Call, named: dict[str, Any]) -> Response:
    content = await request.body()
    caller = await authenticate(request, call.scope)
    body = call.body.model_validate_json(content) if content or not named else None
    response = Response(status_code=call.status)
    if call.function is producers.submit:
        named["response"] = response
    answer = await call.function(request=request, body=body, caller=caller, **named)
    if isinstance(answer, Response):
        return answer
    return Response(answer.model_dump_json(), response.status_code, media_type="application/json")
