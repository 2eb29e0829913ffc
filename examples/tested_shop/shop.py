"""A shop on FastAPI and SQLAlchemy. Its tests are beside it."""

from collections.abc import Iterator
from typing import Annotated

import psycopg
from fastapi import Depends, FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import pgqueue
from pgqueue.integrations.fastapi import pgqueue_lifespan

queue = pgqueue.App()
engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(queue.database.dsn))


class Base(DeclarativeBase): ...


class User(Base):
    __tablename__ = "shop_users"
    email: Mapped[str] = mapped_column(primary_key=True)
    reminded: Mapped[bool] = mapped_column(default=False)


class MailServerDownError(Exception): ...


class Mailer:
    """What the tests replace."""

    def send(self, to: str, text: str) -> None:
        print(f"to {to}: {text}")


mailer = Mailer()


@queue.task(name="welcome", queue="emails", max_attempts=3, retry=pgqueue.Exponential(base=60, jitter=0))
def welcome(email: str) -> str:
    mailer.send(email, "welcome")
    remind.options(delay="3d").enqueue_sync(email)
    return "sent"


@queue.task(name="remind", queue="emails")
async def remind(email: str) -> None:
    mailer.send(email, "still there?")


@queue.schedule("0 9 * * MON", tz="Europe/Berlin")
@queue.task(name="report")
def report(job: pgqueue.Job) -> str:
    return f"report of {job.tick:%Y-%m-%d}"


def session() -> Iterator[Session]:
    with Session(engine) as session, session.begin():
        yield session


api = FastAPI(lifespan=pgqueue_lifespan(queue, worker=True))


@api.post("/users", status_code=201)
def sign_up(email: str, session: Annotated[Session, Depends(session)]) -> dict[str, int]:
    session.add(User(email=email))
    return {"job_id": welcome.using(session).enqueue_sync(email).id}
