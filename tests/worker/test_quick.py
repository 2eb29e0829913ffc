import asyncio, os
import pytest
from pgqueue import *
from worker.support import *

async def test_bell_false(dsn):
    app = make_app(dsn)
    @app.task
    async def f() -> int: return 1
    async with working(app, bell=False):
        assert await (await f.enqueue()).result(3) == 1

@pytest.mark.parametrize("bad", [Snooze(-1), Retry("soon"), Snooze("x")])
async def test_bad_delay(dsn, bad):
    app = make_app(dsn)
    @app.task(max_attempts=1)
    async def f() -> int: raise bad
    async with working(app):
        await in_state(await f.enqueue(), "dead", within=3)

async def test_swallow(dsn):
    app = make_app(dsn)
    end = asyncio.Event()
    @app.task
    async def f() -> int:
        while not end.is_set():
            try: await end.wait()
            except asyncio.CancelledError: pass
    w = Worker(app)
    r = asyncio.create_task(w.run())
    j = await f.enqueue()
    await in_state(j, "running")
    w.stop(now=True)
    try:
        done, _ = await asyncio.wait([r], timeout=12)
        assert done
    finally:
        end.set()
        await asyncio.wait_for(r, 5)

async def test_snooze_cancel(dsn):
    app = make_app(dsn)
    import threading
    go = threading.Event()
    @app.task
    def f() -> int:
        go.wait(5); raise Snooze(0.01)
    async with working(app):
        j = await f.enqueue()
        await in_state(j, "running")
        assert await j.cancel() == "running"
        go.set()
        await in_state(j, "cancelled", within=3)

async def test_deadline_leak(dsn):
    app = make_app(dsn)
    @app.task(timeout=3600)
    async def f() -> None: pass
    async with working(app) as w:
        jobs = await app.enqueue_many([f.job() for _ in range(5000)])
        await until(lambda: w.executor._ended == 5000, "")
        assert len(w.executor._deadlines) < 2000
