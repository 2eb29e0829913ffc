"""The queue over HTTP: :func:`create_app` makes the application that ``pgq serve`` runs. Needs the extra ``server``."""

from pgqueue.http.application import create_app
from pgqueue.http.hosts import LOOPBACK

__all__ = ["LOOPBACK", "create_app"]
