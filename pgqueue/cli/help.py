"""How ``--help`` looks, as a manual page: no boxes, no types; and what is said to a word that is misspelt."""

from __future__ import annotations

import re
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final

from typer.core import TyperCommand, TyperGroup

if TYPE_CHECKING:
    from collections.abc import Iterable

LINE: Final = 100  # columns, at most
_EVERYWHERE: Final = ("dsn", "schema", "json", "debug", "help")
_WHOLE: Final = 1000  # a first sentence is never cut


class Command(TyperCommand):
    """A command whose help tells its own options apart from those of every command."""

    allow_extra_args = True  # so that they are refused below, in better words

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Refuse words that are too many, and say what may have been meant."""
        try:
            left = super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "ctx", ctx) is None:
                error.ctx = ctx  # type: ignore[attr-defined]  # so that the message can name the command
            raise
        if left and not ctx.resilient_parsing:
            self.refuse(ctx, left)
        return left

    def refuse(self, ctx: Any, words: list[str]) -> None:
        """Raise the usage error for words that nobody expected."""
        ctx.fail(f"unexpected {' '.join(words)!r}")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Arguments, own options, and those of every command."""
        _write(self, ctx, formatter)


class Group(TyperGroup):
    """A group whose list shows the first sentence of each command, whole."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the command; for one that there is not, say which may have been meant."""
        word = args[0]
        if word.startswith("-") or word in self.commands:
            return super().resolve_command(ctx, args)
        elsewhere = [
            f"{name} {word}" for name, group in self.commands.items() if word in getattr(group, "commands", {})
        ]
        meant = elsewhere or get_close_matches(word, self.commands, n=2)
        raise ctx.fail(f"no command {word!r}{did_you_mean(f'{ctx.command_path} {name}' for name in meant)}")

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Commands first, then options."""
        rows = [(name, command.get_short_help_str(_WHOLE)) for name, command in self.commands.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
        _write(self, ctx, formatter)


def did_you_mean(words: Iterable[str]) -> str:
    """``; did you mean a or b?``, or nothing."""
    known = list(words)
    return f"; did you mean {' or '.join(known)}?" if known else ""


def told(parameter: Any) -> str:
    """What a parameter's help says, and its default unless that says it."""
    text = " ".join((parameter.help or "").split())
    value = parameter.default
    if value is None or isinstance(value, bool) or callable(value) or "efault" in text:
        return text
    return f"{text} Default: {value}."


def _write(command: Any, ctx: Any, formatter: Any) -> None:
    sections: dict[str, list[tuple[str, str]]] = {"Arguments": [], "Options": [], "Options of every command": []}
    for parameter in command.get_params(ctx):
        if parameter.param_type_name == "argument":
            title, name = "Arguments", parameter.metavar or parameter.name.upper()
        else:
            title = "Options of every command" if parameter.name in _EVERYWHERE else "Options"
            name = _spelling(parameter)
        sections[title].append((name, told(parameter)))
    for title, rows in sections.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


def _spelling(parameter: Any) -> str:
    """``-q, --queue NAME``; what has no short form is indented as if it had one."""
    names = sorted(parameter.opts, key=len)
    text = ", ".join(names) if re.match(r"-\w", names[0]) else f"    {names[0]}"
    return text if parameter.is_flag else f"{text} {parameter.metavar or parameter.name.upper()}"
