"""What the runtime logs is kept from the terminal."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs


@pytest.fixture
def logs() -> Iterator[list]:
    with capture_logs() as captured:
        yield captured
