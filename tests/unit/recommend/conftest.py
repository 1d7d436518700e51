"""The recommender under test; what it logs is kept from the terminal."""

from collections.abc import Iterator

import pytest
from structlog.testing import capture_logs

from tests.unit.recommend.house import House


@pytest.fixture
def house() -> House:
    return House()


@pytest.fixture(autouse=True)
def logs() -> Iterator[list]:
    with capture_logs() as captured:
        yield captured
