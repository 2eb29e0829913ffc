import psycopg
from fastapi import FastAPI
from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

import pgqueue

queue = pgqueue.App()  # PGQUEUE_DSN, else DATABASE_URL, else the embedded server
engine = create_engine("postgresql+psycopg://", creator=lambda: psycopg.connect(queue.database.dsn))


class Base(DeclarativeBase): ...


class User(Base):
    __tablename__ = "users"
    email: Mapped[str] = mapped_column(primary_key=True)


@queue.task(queue="emails", max_attempts=8, timeout="30s")
async def send_welcome(email: str) -> str:
    return f"welcome, {email}"


api = FastAPI(on_startup=[lambda: Base.metadata.create_all(engine)])


@api.post("/users", status_code=201)
def sign_up(email: str) -> dict[str, int]:
    with Session(engine) as session, session.begin():  # one transaction for the user and the job
        session.add(User(email=email))
        job = send_welcome.using(session).enqueue_sync(email)
    return {"job_id": job.id}
