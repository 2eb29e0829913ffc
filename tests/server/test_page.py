"""docs/http.md: every session on the page is run, against a fresh queue, and answers what the page says."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from server.conftest import Api

PAGE = Path(__file__).parent.parent.parent / "docs" / "http.md"
TOOLS = [tool for tool in ("bash", "curl", "jq") if shutil.which(tool) is None]


def sessions() -> list[tuple[str, str]]:
    """Commands and what they answer."""
    steps: list[tuple[str, list[str]]] = []
    for block in re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        for line in block.splitlines():
            if line.startswith("$ "):
                steps.append((line[2:], []))
            else:
                steps[-1][1].append(line)
    return [(command, "\n".join(lines)) for command, lines in steps]


@pytest.mark.skipif(bool(TOOLS), reason=f"not installed: {', '.join(TOOLS)}")
def test_the_page_is_true(api: Api, tmp_path: Path):
    address = str(api.base_url).rstrip("/")
    steps = sessions()
    assert len(steps) > 15
    for command, expected in steps:
        done = subprocess.run(
            ["bash", "-o", "pipefail", "-c", command.replace("localhost:8080", address)],
            cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert done.returncode == 0, (command, done.stderr)
        pattern = ".*?".join(map(re.escape, expected.split("…")))
        assert re.fullmatch(pattern, done.stdout.strip()), (command, done.stdout, expected)
