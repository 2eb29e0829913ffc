"""A task's parameters as JSON: checked by pydantic when a job is enqueued, and again when it runs."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal, NotRequired, Required, get_args, get_origin, get_type_hints

import orjson
from pydantic import ConfigDict, PydanticSchemaGenerationError, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError
from typing_extensions import TypedDict

from pgqueue.errors import InvalidJobError, InvalidPayloadError, PgqueueError, ResourceError
from pgqueue.job import check_json, dump_payload, refuse_non_finite

if TYPE_CHECKING:
    from collections.abc import Callable


class _Injected:
    """See :data:`injected`."""

    def __repr__(self) -> str:
        return "pgqueue.injected"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what inspect, pickle and the like ask of anything
            raise AttributeError(name)
        raise PgqueueError(
            f"nothing was injected here; outside a worker pass the argument yourself (.{name} was asked)"
        )


# The default of a parameter that a worker fills in, so that type checkers let a caller leave it out.
injected: Final[Any] = _Injected()


class Arguments:
    """Turns a call's arguments into a payload, and a payload into keyword arguments.

    ``job_parameter`` is the parameter annotated :class:`pgqueue.Job`, which gets the running job and is not in
    the payload. ``resources`` are the parameters that get a resource, each with the resource's type. A ``raw`` task
    has one parameter that takes the whole payload, whatever JSON it is.

    Raises:
        InvalidJobError: the function can't be called with JSON: ``*args``, positional-only parameters, or an
            annotation that pydantic can't handle.
        ResourceError: a parameter is to be injected, and there is no resource of its type.
    """

    __slots__ = ("_adapter", "_empty", "_exactly", "_names", "_open", "_signature", "_task", "_validate", "hints",
                 "job_parameter", "raw", "resources")  # fmt: skip

    def __init__(
        self, function: Callable[..., Any], task: str, *, raw: bool, job_type: type, resources: Collection[Any] = ()
    ) -> None:
        signature = inspect.signature(function)
        hints = read_hints(function, task)
        self._task = task
        self.raw = raw
        self.job_parameter = next((n for n in signature.parameters if _mentions(hints.get(n), job_type)), None)
        self.resources = find_resources(signature, hints, resources)
        parameters = [
            p for name, p in signature.parameters.items() if name != self.job_parameter and name not in self.resources
        ]
        _check_not_injected(task, parameters)
        self.hints = {p.name: hints.get(p.name, Any) for p in parameters}
        self._signature = signature.replace(parameters=parameters)
        self._names = [p.name for p in parameters]
        if raw and len(parameters) != 1:
            raise InvalidJobError(f"task {task!r} is raw: it must have exactly one parameter for the payload")
        self._empty = not parameters
        self._open = bool(parameters) and parameters[-1].kind is inspect.Parameter.VAR_KEYWORD
        self._exactly = None if self._open else frozenset(self._names)
        self._adapter = None if raw else _adapter(task, parameters, hints)
        self._validate = None if self._adapter is None else self._adapter.validator.validate_json

    def dump(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The payload of a call; raises InvalidPayloadError when the arguments do not fit."""
        if not args and kwargs.keys() == self._exactly:  # each by its name: nothing to bind
            bound = kwargs
        else:
            try:
                bound = self._signature.bind(*args, **kwargs).arguments
            except TypeError as error:
                raise InvalidPayloadError(f"task {self._task!r}: {error}") from None
        if self._adapter is None:
            return dump_payload(bound[self._names[0]])
        if self._open and self._names[-1] in bound:  # what **kwargs has taken lies beside the named ones
            bound.update(bound.pop(self._names[-1]))
        return _dump(self._task, self._adapter, bound)

    def load(self, payload: str) -> dict[str, Any]:
        """The keyword arguments in a payload; raises InvalidPayloadError when they do not fit."""
        if self._validate is None:
            return {self._names[0]: orjson.loads(payload)}
        if self._empty and payload == "{}":
            return {}
        try:
            return self._validate(payload)  # type: ignore[no-any-return] # what TypeAdapter's own does, without its keywords
        except ValidationError as error:
            raise InvalidPayloadError(f"task {self._task!r}: {_first(error)}") from None


class ItemArguments:
    """The same for a batch handler: a payload is one item of the list that its one parameter takes.

    ``jobs_parameter`` is the parameter annotated :class:`pgqueue.Jobs`, which gets the running jobs.
    """

    __slots__ = ("_adapter", "_task", "hints", "items_parameter", "jobs_parameter", "raw", "resources")

    job_parameter = None

    def __init__(
        self, function: Callable[..., Any], task: str, *, job_type: type, jobs_type: type, resources: Collection[Any]
    ) -> None:
        signature = inspect.signature(function)
        hints = read_hints(function, task)
        self._task = task
        self.raw = True  # an item is the whole payload
        self.jobs_parameter = next((n for n in signature.parameters if _mentions(hints.get(n), jobs_type)), None)
        self.resources = find_resources(signature, hints, resources)
        parameters = [
            p for name, p in signature.parameters.items() if name != self.jobs_parameter and name not in self.resources
        ]
        _check_not_injected(task, parameters)
        if any(_mentions(hints.get(p.name), job_type) for p in parameters):
            raise InvalidJobError(f"task {task!r} takes a batch of jobs: annotate pgqueue.Jobs instead of pgqueue.Job")
        hint = hints.get(parameters[0].name, list) if len(parameters) == 1 else None
        if parameters and parameters[0].kind not in {
            inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        }:  # fmt: skip
            hint = None
        if (get_origin(hint) or hint) not in {list, Sequence, Collection, Iterable}:
            raise InvalidJobError(
                f"task {task!r} takes a batch: besides what is injected it must have exactly one parameter, "
                "for the payloads, annotated list[…]"
            )
        self.items_parameter = parameters[0].name
        self.hints = {self.items_parameter: next(iter(get_args(hint)), Any)}
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(self.hints[self.items_parameter])
        except PydanticSchemaGenerationError as error:
            raise InvalidJobError(_no_json(task, error)) from None

    def dump(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """The payload of a call with one item; raises InvalidPayloadError when it does not fit."""
        if len(args) != 1 or kwargs:
            raise InvalidPayloadError(f"task {self._task!r}: a job of a batch handler has one item as its payload")
        return _dump(self._task, self._adapter, args[0])

    def load(self, payload: str) -> Any:
        """The item in a payload; raises InvalidPayloadError when it does not fit."""
        try:
            return self._adapter.validate_json(payload)
        except ValidationError as error:
            raise InvalidPayloadError(f"task {self._task!r}: {_first(error)}") from None


def find_resources(signature: inspect.Signature, hints: dict[str, Any], resources: Collection[Any]) -> dict[str, Any]:
    """The parameters whose annotation is the type of a resource, alone or beside None; each with that type."""
    found = {}
    for name in signature.parameters:
        hint = hints.get(name)
        kinds = [hint, *get_args(hint)] if type(None) in get_args(hint) else [hint]
        kind = next((kind for kind in kinds if any(kind == known for known in resources)), None)
        if kind is not None:
            found[name] = kind
    return found


def read_hints(function: Callable[..., Any], task: str, what: str = "task") -> dict[str, Any]:
    """The annotations of a function as types."""
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InvalidJobError(
            f"{what} {task!r}: annotation names {error.name!r}, which does not exist at run time; "
            "import it outside TYPE_CHECKING"
        ) from None


def _check_not_injected(task: str, parameters: list[inspect.Parameter]) -> None:
    for parameter in parameters:
        if parameter.default is injected:
            raise ResourceError(
                f"task {task!r}: there is no resource for the parameter {parameter.name!r}; register one of its type "
                "with @app.resource, before the task"
            )


def _dump(task: str, adapter: TypeAdapter[Any], value: Any) -> str:
    what = f"task {task!r}: payload"
    try:
        value = adapter.validator.validate_python(value)  # what TypeAdapter's own do, without their twenty keywords
        data = adapter.serializer.to_json(value)
    except ValidationError as error:
        raise InvalidPayloadError(f"task {task!r}: {_first(error)}") from None
    except (PydanticSerializationError, UnicodeEncodeError) as error:
        raise InvalidPayloadError(f"{what} is not JSON: {error}") from None
    if b"null" in data:  # pydantic writes NaN and the infinities so
        refuse_non_finite(adapter.dump_python(value), what)
    return check_json(data, what)


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
        raise InvalidJobError(_no_json(task, error)) from None


def _no_json(task: str, error: Exception) -> str:
    return (
        f"task {task!r}: a parameter's type can't travel as JSON: {str(error).splitlines()[0]}; "
        "if it is a resource, register it with @app.resource before the task"
    )


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
