"""The API's description: complete, and with our problems in it. Whether it is true: tests/chaos/test_http.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from server.conftest import Api


def test_every_call_is_described_with_its_errors(api: Api):
    schema = api.get("/openapi.json").json()
    assert schema["openapi"].startswith("3.1")
    assert "HTTPValidationError" not in schema["components"]["schemas"]
    for path, calls in schema["paths"].items():
        for method, call in calls.items():
            assert call.get("description"), (method, path)
            for status, answer in call["responses"].items():
                if status >= "4" and not path.startswith(("/livez", "/readyz", "/health")):
                    assert list(answer["content"]) == ["application/problem+json"], (method, path, status)
    described = {f"{method.upper()} {path}" for path, calls in schema["paths"].items() for method in calls}
    assert described >= {
        "POST /jobs", "POST /jobs:batch", "POST /jobs/lease", "POST /jobs/{job_id}/ack", "POST /jobs/{job_id}/fail",
        "POST /jobs/{job_id}/release", "POST /jobs:finish", "POST /heartbeats", "POST /jobs/{job_id}/cancel",
        "POST /jobs/{job_id}/retry", "GET /jobs/{job_id}", "GET /jobs", "GET /queues", "PATCH /queues/{queue}",
        "POST /queues/{queue}/pause", "POST /queues/{queue}/resume", "POST /jobs:bulk", "GET /health", "GET /livez",
        "GET /readyz",
    }  # fmt: skip
