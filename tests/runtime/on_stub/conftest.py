from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgekit.runtime.cuda import Gpu
from tests.runtime.on_stub.driver import Stub


@pytest.fixture
def stub() -> Stub:
    """The stub of the driver, as new."""
    return Stub()


@pytest.fixture
def gpu(stub: Stub) -> Iterator[Gpu]:
    """A GPU of the stub."""
    with Gpu() as found:
        stub.clear()
        yield found
