from __future__ import annotations

import gc
import threading
import types

import pytest

from edgekit.errors import MissingDependencyError
from edgekit.trt_api import MODULES, load_module, logger_for, no_collection, opened_engine, title_of


def test_the_collector_rests_while_tensorrt_runs() -> None:
    """A collection inside the logger that frees an old builder would wait for a lock that is held: for ever."""
    with no_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(RuntimeError), no_collection():
        raise RuntimeError
    assert gc.isenabled()


def test_the_collector_rests_until_the_last_of_several_threads_is_done() -> None:
    first_in, first_out = threading.Event(), threading.Event()

    def first() -> None:
        with no_collection():
            first_in.set()
            assert first_out.wait(20)

    thread = threading.Thread(target=first)
    thread.start()
    assert first_in.wait(20)
    with no_collection():
        first_out.set()
        thread.join()
        assert not gc.isenabled()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    gc.disable()
    try:
        with no_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("kind", list(MODULES))
def test_a_module_that_is_not_there_is_named_with_the_fix(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, MODULES[kind], None)
    with pytest.raises(MissingDependencyError, match=rf"{MODULES[kind]} is needed to build .* pip install 'edgekit\["):
        load_module(kind, why="build engines")


def test_messages_reach_the_log_and_the_verbose_ones_only_where_wanted() -> None:
    trt = types.SimpleNamespace(ILogger=type("ILogger", (), {}), __name__="tensorrt", __version__="10.3.0")
    seen: list[tuple[int, str]] = []
    for verbose in (True, False):
        logger = logger_for(trt, lambda level, text: seen.append((level, text)), verbose=verbose)
        logger.log(2, "warning")
        logger.log(4, "detail")
    assert seen == [(2, "warning"), (4, "detail"), (2, "warning")]
    assert title_of(trt) == "TensorRT 10.3.0"


@pytest.mark.parametrize(("asked", "allowed"), [(True, True), (False, False)])
def test_code_inside_an_engine_runs_only_where_it_is_asked_for(asked: bool, allowed: bool) -> None:
    class Runtime:
        engine_host_code_allowed = False

        def __init__(self, logger: object) -> None:
            self.logger = logger

        def deserialize_cuda_engine(self, data: bytes) -> tuple[bytes, bool]:
            return data, self.engine_host_code_allowed

    trt = types.SimpleNamespace(Runtime=Runtime)
    runtime, engine = opened_engine(trt, b"plan", object(), host_code=asked)
    assert engine == (b"plan", allowed)
    assert isinstance(runtime, Runtime)
    assert opened_engine(types.SimpleNamespace(Runtime=lambda _: None), b"", object()) == (None, None)
