"""``--app module:app``: import it, and say plainly what is wrong when that fails."""

from __future__ import annotations

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

from pgqueue.errors import PgqueueError, SettingsError

if TYPE_CHECKING:
    from pgqueue.app import App
    from pgqueue.cli.options import Context


def load_app(where: str) -> App:
    """The app that ``module:attribute`` names; the attribute is ``app`` when it is left out.

    Raises:
        SettingsError: no such module or attribute, it is not an App, or importing it failed.
    """
    from pgqueue.app import App  # noqa: PLC0415

    module_name, _, attribute = where.partition(":")
    attribute = attribute or "app"
    found = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            raise SettingsError(f"--app {where}: module {module_name!r} has no {attribute!r}{_apps_in(found, App)}")
        found = getattr(found, part)
    if not isinstance(found, App):
        raise SettingsError(f"--app {where}: {attribute!r} is a {type(found).__name__}, not a pgqueue.App")
    return found


def load_configured(context: Context, where: str, **given: Any) -> App:
    """The same under the settings of the flags and the environment; what these leave open is the app's own."""
    own = load_app(where)
    own.configure(context.settings_over(own.settings, **given))
    return own


def _import(name: str) -> Any:
    folder = os.getcwd()  # noqa: PTH109 - sys.path holds text
    if folder not in sys.path:
        sys.path.insert(0, folder)
    if not name or not all(part.isidentifier() for part in name.split(".")):
        raise SettingsError(f"--app must be module:app, such as shop.jobs:app; {name!r} is not a module's name")
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and (name == error.name or name.startswith(f"{error.name}.")):
            raise SettingsError(f"--app: there is no module {error.name!r} in {folder} or on PYTHONPATH") from None
        raise SettingsError(f"--app: importing {name!r} failed: {error}; --debug shows the traceback") from error
    except PgqueueError:
        raise
    except (Exception, SystemExit) as error:
        raise SettingsError(
            f"--app: importing {name!r} failed: {type(error).__name__}: {error}; --debug shows the traceback"
        ) from error


def _apps_in(module: Any, kind: type) -> str:
    names = (
        [name for name, value in vars(module).items() if isinstance(value, kind)] if hasattr(module, "__dict__") else []
    )
    return f"; there is: {', '.join(names)}" if names else ""
