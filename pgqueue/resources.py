"""Resources: what handlers share (a pool, an HTTP client), started with the worker and injected by type. No SQL."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin

from pgqueue.errors import InvalidJobError, ResourceError
from pgqueue.signature import find_resources, read_hints

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

log = logging.getLogger(__name__)

_CLOSING: Final = 10.0  # how long a resource may take to close
_GENERATORS: Final = {AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterable, Iterator}
_TOO_COMMON: Final = (Any, object, str, int, float, bool, bytes, dict, list, tuple, set, frozenset)


class Resource:
    """A registered generator function: what comes before its ``yield`` starts the resource, what follows closes it.

    Attributes:
        key: the type that handlers ask for; None: nothing is injected, it only starts and closes something.
        needs: its own parameters, each with the type of an earlier resource.
    """

    def __init__(self, function: Callable[..., Any], known: Sequence[Any]) -> None:
        self.name = f"{function.__module__}.{function.__qualname__}"
        self.is_async = inspect.isasyncgenfunction(function)
        if not (self.is_async or inspect.isgeneratorfunction(function)):
            raise ResourceError(f"resource {self.name} must be a generator function: start, yield it, close")
        self._function = function
        try:
            hints = read_hints(function, self.name, "resource")
        except InvalidJobError as error:
            raise ResourceError(str(error)) from None
        self.key = _yielded(self.name, hints.get("return"))
        signature = inspect.signature(function)
        self.needs = find_resources(signature, hints, known)
        for name in signature.parameters:
            if name not in self.needs:
                raise ResourceError(f"resource {self.name}: no earlier resource has the type of its parameter {name!r}")

    def open(self, values: Mapping[Any, Any]) -> Any:
        """A context manager, sync or async, around its life."""
        wrap: Any = asynccontextmanager if self.is_async else contextmanager
        return wrap(self._function)(**{name: values[key] for name, key in self.needs.items()})


class Resources:
    """The resources of an application, in the order of registration."""

    def __init__(self) -> None:
        self._all: list[Resource] = []

    @property
    def keys(self) -> list[Any]:
        """The types that can be injected."""
        return [resource.key for resource in self._all if resource.key is not None]

    def add(self, function: Callable[..., Any]) -> Resource:
        """Register one; raises ResourceError."""
        resource = Resource(function, self.keys)
        if resource.key is not None and resource.key in self.keys:
            raise ResourceError(
                f"resource {resource.name}: there is already one of {_shown(resource.key)}; "
                "tell them apart with Annotated or NewType"
            )
        self._all.append(resource)
        return resource

    def all_but(self, keys: Iterable[Any]) -> list[Resource]:
        """All of them but these, unless one of the others needs them; in the order of their start."""
        left_out = list(keys)
        return self._with_needs(lambda resource: resource.key is None or resource.key not in left_out)

    def needed_for(self, keys: Iterable[Any]) -> list[Resource]:
        """Those of these types and what they are made from, in the order of their start."""
        wanted = list(keys)
        return self._with_needs(lambda resource: resource.key is not None and resource.key in wanted)

    def _with_needs(self, choose: Callable[[Resource], bool]) -> list[Resource]:
        found: list[Resource] = []
        needed: list[Any] = []
        for resource in reversed(self._all):
            if choose(resource) or resource.key in needed:
                found.append(resource)
                needed += resource.needs.values()
        return found[::-1]


class Lifespan:
    """Started resources. Start and close it in one asyncio task: some libraries insist on that."""

    def __init__(self) -> None:
        self.values: dict[Any, Any] = {}
        self._open: list[tuple[Resource, Any]] = []

    async def start(self, resources: Iterable[Resource]) -> None:
        """Start these, in order, but for those that are started.

        Raises:
            ResourceError: one of them did not start. Close the lifespan nevertheless, for those before it.
        """
        for resource in resources:
            if any(resource is opened for opened, _ in self._open):
                continue
            manager = resource.open(self.values)
            try:
                value = await (manager.__aenter__() if resource.is_async else asyncio.to_thread(manager.__enter__))
            except Exception as error:
                raise ResourceError(
                    f"resource {resource.name} did not start: {type(error).__name__}: {error}"
                ) from error
            self._open.append((resource, manager))
            if resource.key is not None:
                self.values[resource.key] = value
            log.debug("resource %s is started", resource.name)

    async def close(self) -> None:
        """Close them, last first. What fails to close is logged, and the others are closed all the same."""
        while self._open:
            resource, manager = self._open.pop()
            done = (None, None, None)
            try:
                async with asyncio.timeout(_CLOSING):
                    await (
                        manager.__aexit__(*done) if resource.is_async else asyncio.to_thread(manager.__exit__, *done)
                    )
            except Exception:
                log.exception("resource %s did not close in order", resource.name)
        self.values.clear()


def _yielded(name: str, hint: Any) -> Any:
    """What ``AsyncIterator[Pool]`` yields: Pool."""
    arguments = get_args(hint)
    if get_origin(hint) not in _GENERATORS or not arguments:
        raise ResourceError(f"resource {name}: say what it yields, for example -> AsyncIterator[Pool]")
    kind = arguments[0]
    if kind is type(None):
        return None
    if (get_origin(kind) or kind) in _TOO_COMMON:
        raise ResourceError(
            f"resource {name}: every parameter annotated {_shown(kind)} would get it; "
            "give it a class or a NewType of its own"
        )
    return kind


def _shown(kind: Any) -> str:
    return getattr(kind, "__name__", None) or str(kind)
