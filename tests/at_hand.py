"""What a test needs from its machine: without it the test is skipped, or fails in CI, where everything must be at hand."""

import os

import pytest

IN_CI = os.environ.get("FMLAB_CI") == "1"


def unavailable(reason: str) -> None:
    """Skip, or fail in CI."""
    if IN_CI:
        pytest.fail(f"in CI, but {reason}", pytrace=False)
    pytest.skip(reason)
