"""Fields that reads do not show."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Collection

HIDDEN: Final = "[redacted]"


class Redact:
    """A value without what stands under these names, at any depth; upper and lower case are the same.

    A text that may be JSON and has such a name in it is hidden as a whole: so comes what the database holds and Python
    can't (a number of 10,000 digits).
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = frozenset(name.lower() for name in names)

    def __call__(self, value: Any) -> Any:
        """The value itself when nothing is to be hidden."""
        if not self._names:
            return value
        try:
            return self._hide(value)
        except RecursionError:  # nested deeper than we can look
            return HIDDEN

    def _hide(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {
                key: HIDDEN if str(key).lower() in self._names else self._hide(item) for key, item in value.items()
            }  # fmt: skip
        if isinstance(value, list):
            return [self._hide(item) for item in value]
        if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
            text = value.lower()
            return HIDDEN if any(name in text for name in self._names) else value
        return value
