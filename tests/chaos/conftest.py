"""The stories of tests/scenarios have their fixtures here, too."""

from scenarios.conftest import lease, story

__all__ = ["lease", "story"]
