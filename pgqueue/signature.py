"""A task's parameters as JSON: checked by pydantic when a job is enqueued, and again when it runs."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Required, get_args, get_origin, get_type_hints

import orjson
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import TypedDict

from pgqueue.errors import InvalidJobError, InvalidPayloadError
from pgqueue.job import check_json, dump_payload, refuse_non_finite

if TYPE_CHECKING:
    from collections.abc import Callable


class Arguments:
    """Turns a call's arguments into a payload, and a payload into keyword arguments.

    ``job_parameter`` is the parameter annotated :class:`pgqueue.Job`, which gets the running job and is not in
    the payload. A ``raw`` task has one parameter that takes the whole payload, whatever JSON it is.

    Raises:
        InvalidJobError: the function can't be called with JSON: ``*args``, positional-only parameters, or an
            annotation that pydantic can't handle.
    """

    __slots__ = ("_adapter", "_empty", "_names", "_open", "_signature", "_task", "job_parameter", "raw")

    def __init__(self, function: Callable[..., Any], task: str, *, raw: bool, job_type: type) -> None:
        signature = inspect.signature(function)
        hints = _hints(function, task)
        self._task = task
        self.raw = raw
        self.job_parameter = next((n for n in signature.parameters if _mentions(hints.get(n), job_type)), None)
        parameters = [p for name, p in signature.parameters.items() if name != self.job_parameter]
        self._signature = signature.replace(parameters=parameters)
        self._names = [p.name for p in parameters]
        if raw and len(parameters) != 1:
            raise InvalidJobError(f"task {task!r} is raw: it must have exactly one parameter for the payload")
        self._empty = not parameters
        self._open = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
        self._adapter = None if raw else _adapter(task, parameters, hints)

    def dump(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The payload of a call; raises InvalidPayloadError when the arguments do not fit."""
        try:
            bound = self._signature.bind(*args, **kwargs).arguments
        except TypeError as error:
            raise InvalidPayloadError(f"task {self._task!r}: {error}") from None
        if self._adapter is None:
            return dump_payload(bound[self._names[0]])
        if self._open and self._names[-1] in bound:  # what **kwargs has taken lies beside the named ones
            bound.update(bound.pop(self._names[-1]))
        what = f"task {self._task!r}: payload"
        try:
            value = self._adapter.validate_python(bound)
            data = self._adapter.dump_json(value)
        except ValidationError as error:
            raise InvalidPayloadError(f"task {self._task!r}: {_first(error)}") from None
        except (PydanticSerializationError, UnicodeEncodeError) as error:
            raise InvalidPayloadError(f"{what} is not JSON: {error}") from None
        if b"null" in data:  # pydantic writes NaN and the infinities so
            refuse_non_finite(self._adapter.dump_python(value), what)
        return check_json(data, what)

    def load(self, payload: str) -> dict[str, Any]:
        """The keyword arguments in a payload; raises InvalidPayloadError when they do not fit."""
        if self._adapter is None:
            return {self._names[0]: orjson.loads(payload)}
        if self._empty and payload == "{}":
            return {}
        try:
            return self._adapter.validate_json(payload)  # type: ignore[no-any-return]
        except ValidationError as error:
            raise InvalidPayloadError(f"task {self._task!r}: {_first(error)}") from None


def _adapter(task: str, parameters: list[inspect.Parameter], hints: dict[str, Any]) -> TypeAdapter[Any]:
    fields: dict[str, Any] = {}
    extra: Literal["forbid", "allow"] = "forbid"
    for parameter in parameters:
        if parameter.kind in {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.POSITIONAL_ONLY}:
            raise InvalidJobError(
                f"task {task!r}: parameter {parameter.name!r} can't be named in JSON; "
                "make it a plain or keyword parameter"
            )
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            extra = "allow"
            continue
        hint = hints.get(parameter.name, Any)
        fields[parameter.name] = Required[hint] if parameter.default is parameter.empty else NotRequired[hint]
    make: Any = TypedDict
    arguments = make(f"{task} arguments", fields)
    arguments.__pydantic_config__ = ConfigDict(extra=extra)
    try:
        return TypeAdapter(arguments)
    except PydanticSchemaGenerationError as error:
        raise InvalidJobError(
            f"task {task!r}: a parameter's type can't travel as JSON: {str(error).splitlines()[0]}"
        ) from None


def _hints(function: Callable[..., Any], task: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InvalidJobError(
            f"task {task!r}: annotation names {error.name!r}, which does not exist at run time; "
            "import it outside TYPE_CHECKING"
        ) from None


def _mentions(hint: Any, job_type: type) -> bool:
    """``Job``, or ``Job | None``."""
    if get_origin(hint) is not None:
        return any(_mentions(argument, job_type) for argument in get_args(hint))
    return isinstance(hint, type) and issubclass(hint, job_type)


def _first(error: ValidationError) -> str:
    details = error.errors(include_url=False)
    place = ".".join(str(part) for part in details[0]["loc"]) or "payload"
    more = f" (and {len(details) - 1} more)" if len(details) > 1 else ""
    return f"{place}: {details[0]['msg']}{more}"
