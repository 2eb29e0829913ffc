"""The HTTP API under whatever a client may send: schemathesis makes it up from the API's own description."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from server.conftest import Running

from pgqueue.http import models

if TYPE_CHECKING:
    import pytest

CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance",
)  # fmt: skip


def test_whatever_is_sent_the_answer_is_one_that_the_schema_describes(
    dsn: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(models, "LONGEST_WAIT", 0.05)
    with Running(dsn) as api:
        command, schema = Path(sys.executable).with_name("schemathesis"), str(api.base_url.join("/openapi.json"))
        paths = api.get("/openapi.json").json()["paths"]
        operations = sum(len(calls) for path, calls in paths.items() if path != "/events")  # a stream has no end
        done: Any = subprocess.run(
            [command, "run", schema, "--checks", ",".join(CHECKS), "--phases", "fuzzing", "--max-examples", "60",
             "--workers", "2", "--generation-deterministic", "--exclude-path", "/events", "--continue-on-failure",
             "--no-color"],
            cwd=tmp_path, capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout[:6_000] + done.stderr[-2_000:]
    tested = re.search(r"Tested: (\d+)", done.stdout)
    assert tested is not None, done.stdout[-3_000:]
    assert int(tested[1]) == operations
