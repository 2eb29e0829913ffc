"""A shop on Flask and SQLAlchemy: a job and a row in the request's transaction, a handler in Flask's context.

flask --app flask_shop pgqueue migrate
flask --app flask_shop pgqueue worker
flask --app flask_shop run
"""

import psycopg
from flask import Flask, current_app, request
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import pgqueue
from pgqueue.integrations.flask import init_app

queue = pgqueue.App()
flask = Flask(__name__)
flask.config.from_prefixed_env()  # FLASK_PGQUEUE_DSN, FLASK_SENDER, …
init_app(flask, queue)
engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(queue.database.dsn))


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "flask_orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


@queue.task(name="confirm", queue="emails")
def confirm(order: int) -> str:
    return f"order {order} confirmed by {current_app.config.get('SENDER', 'nobody')}"


@flask.post("/orders")
def order() -> tuple[dict[str, int], int]:
    with Session(engine) as session, session.begin():
        order = Order(item=request.form["item"])
        session.add(order)
        session.flush()
        job = confirm.using(session).enqueue_sync(order.id)
        return {"order": order.id, "job_id": job.id}, 201
