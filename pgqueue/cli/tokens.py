"""``pgq token``: who may use the HTTP API, for what and on which queues; create, list and revoke tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pgqueue.cli.options import Context, command, make_group
from pgqueue.cli.text import ago, print_json, print_table, show

if TYPE_CHECKING:
    from pgqueue.tokens import TokenRecord

app = make_group("token", "Tokens of the HTTP API: who may do what on which queues; create, list and revoke them.")

NameArgument = Annotated[str, typer.Argument(metavar="NAME", help="The token's name.")]


@command(app)
def create(
    context: Context,
    name: NameArgument,
    scope: Annotated[
        list[str],
        typer.Option(
            "--scope", metavar="SCOPE", help="What it may do: enqueue, work, read, or admin: all. May be repeated."
        ),
    ],
    queue: Annotated[
        list[str] | None,
        typer.Option(
            "--queue",
            "-q",
            metavar="GLOB",
            help="On which queues; * stands for any characters, ? for one. May be repeated. Default: '*', all.",
        ),
    ] = None,
    expires_in: Annotated[
        str | None, typer.Option(metavar="DURATION", help="Refuse it after this long: 12h, 90d. Default: never.")
    ] = None,
) -> None:
    """Create a token and print its secret, which is not kept: nobody can print it again.

    The secret stands alone on stdout, so that TOKEN=$(pgq token create …) holds it; the rest is on stderr.
    """
    from pgqueue.tokens import EVERY_QUEUE, TokenSpec  # noqa: PLC0415

    spec = TokenSpec.make(name, scope, queue or EVERY_QUEUE, expires_in)
    with context.client() as client:
        record, secret = client.create_token(spec.name, spec.scopes, spec.queues, spec.expires_in)
    if context.json:
        print_json({**record.as_dict(), "secret": secret})
        return
    typer.echo(f"{show(name)} created: {_terms(record)}. Keep its secret: it is not shown again.", err=True)
    typer.echo(secret)


@command(app, "list")
def list_tokens(
    context: Context,
    revoked: Annotated[bool, typer.Option("--revoked", help="Also those that were revoked.")] = False,
) -> None:
    """Print the tokens: what each may do and where, when it was last used and whether it is valid; never its secret."""
    with context.client() as client:
        records = client.tokens(revoked=revoked)
    if context.json:
        print_json([record.as_dict() for record in records])
        return
    columns = ("name", "scopes", "queues", "created", "last used", "state")
    print_table(columns, [_row(record) for record in records], empty="no tokens")


@command(app)
def revoke(context: Context, name: NameArgument) -> None:
    """Let nobody in with a token any more; its name is free again."""
    with context.client() as client:
        client.revoke_token(name)
    if context.json:
        print_json({"token": name, "revoked": True})
    else:
        typer.echo(f"{show(name)} revoked")


def _terms(record: TokenRecord) -> str:
    expiry = "does not expire" if record.expires_at is None else f"expires {show(record.expires_at)}"
    return f"{show(record.scopes)} on {show(record.queues)}, {expiry}"


def _row(record: TokenRecord) -> tuple[Any, ...]:
    return (
        record.name, record.scopes, record.queues, ago(record.created_at),
        None if record.last_used_at is None else ago(record.last_used_at), _state(record),
    )  # fmt: skip


def _state(record: TokenRecord) -> str:
    if record.revoked_at is not None:
        return f"revoked {ago(record.revoked_at)}"
    if record.expired:
        return "expired"
    return "valid" if record.expires_at is None else f"valid until {show(record.expires_at)}"
