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


@pytest.fixture
def nothing_left_behind(stub: Stub) -> Iterator[None]:
    """A module like TensorRT as new; after the test nothing may be left on the stub's GPU."""
    from tests.runtime.on_stub import fake_trt  # it loads the stub, which is there only in a process of its own

    fake_trt.events.clear()
    fake_trt.refuse.clear()
    before = stub.live
    yield
    assert stub.live == before, "a session left memory, streams or graphs behind"
