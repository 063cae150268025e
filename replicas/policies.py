"""Whether all replicas would do the same in a violation."""

from __future__ import annotations

import logging

from .replica import Facts

_log = logging.getLogger("readygate.replicas")


class Policies:
    """Compares the policies of those that a sync read."""

    def __init__(self) -> None:
        self._mixed = False

    def compare(self, facts: Facts) -> None:
        """One line when replicas are seen to run different policies, and one when they no longer do."""
        policies = {row.exclude for row in (*facts.members, facts.me)}
        mixed = len(policies) > 1
        if mixed and not self._mixed:
            _log.warning(
                "replicas run different policies (%s): no guarantee holds for both", ", ".join(sorted(policies))
            )
        elif self._mixed and not mixed:
            _log.info("replicas run one policy again: %s", *policies)
        self._mixed = mixed
