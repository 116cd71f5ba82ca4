"""Regions of shared memory: only real ones, only within their bounds, and never the end of the server."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from edgekit.errors import InputError
from edgekit.serve.listen import is_local
from edgekit.serve.messages import InferRequest, Place, RequestError, SharedInput
from edgekit.serve.shared_memory import MAX_REGIONS, SharedMemory
from edgekit.tensors import dtype_of

KEY = f"edgekit_unit_{os.getpid()}"


@pytest.fixture
def file() -> Iterator[Path]:
    path = Path("/dev/shm") / KEY
    path.write_bytes(bytes(range(200)))
    yield path
    path.unlink(missing_ok=True)


@pytest.fixture
def memory(file: Path) -> Iterator[SharedMemory]:
    out = SharedMemory()
    out.register("r", f"/{KEY}", 100, 80)
    yield out
    out.close()


def read(memory: SharedMemory, place: Place, dtype: str = "uint8", shape: tuple[int, ...] = (4,)) -> np.ndarray:
    request = InferRequest({}, shared={"x": SharedInput(dtype_of(dtype), shape, place)})
    memory.read_inputs(request)
    assert request.shared == {}
    return request.feed["x"]


def test_tensors_are_read_and_written_where_they_are(memory: SharedMemory, file: Path) -> None:
    assert read(memory, Place("r", 3, 4)).tolist() == [103, 104, 105, 106]
    assert read(memory, Place("r", 0, 0), shape=(0, 3)).shape == (0, 3)
    value = np.array([1.5, -2], np.float32)
    assert memory.write_output("y", "FP32", value, Place("r", 70, 10)) == Place("r", 70, 8)
    assert np.frombuffer(file.read_bytes()[170:178], np.float32).tolist() == [1.5, -2]
    assert read(memory, Place("r", 70, 8), "float32", (2,)).tolist() == [1.5, -2]
    memory.write_output("t", "BYTES", np.array(["é"], object), Place("r", 0, 6))
    assert read(memory, Place("r", 0, 6), "string", (1,)).tolist() == ["é"]


def test_nothing_outside_a_region_is_touched(memory: SharedMemory, file: Path) -> None:
    before = file.read_bytes()
    for place in (Place("r", 77, 4), Place("r", 81, 0), Place("r", 1 << 62, 4)):
        with pytest.raises(InputError, match="would end at byte"):
            read(memory, place)
        with pytest.raises(InputError, match="would end at byte"):
            memory.write_output("y", "UINT8", np.zeros(4, np.uint8), place)
    with pytest.raises(InputError, match="has 8 bytes, shared_memory_byte_size is 4"):
        memory.write_output("y", "FP64", np.zeros(1), Place("r", 0, 4))
    with pytest.raises(InputError, match=r"4 bytes of shared memory, FP32 of shape \(2\) has 8"):
        read(memory, Place("r", 0, 4), "float32", (2,))
    assert file.read_bytes() == before


def test_an_object_that_shrinks_is_a_fault_of_the_request_only(memory: SharedMemory, file: Path) -> None:
    os.truncate(file, 150)
    assert read(memory, Place("r", 46, 4)).tolist() == [146, 147, 148, 149]
    with pytest.raises(InputError, match="has become smaller"):
        read(memory, Place("r", 48, 4))
    with pytest.raises(InputError, match="has become smaller"):
        memory.write_output("y", "UINT8", np.zeros(4, np.uint8), Place("r", 48, 4))
    assert file.stat().st_size == 150


@pytest.mark.parametrize(
    "key", ["", "/", "//", ".", "..", "/..", "../etc/passwd", "/a/b", "x" * 300, "a\0b", "/nothing-here"]
)
def test_keys_name_objects_of_shared_memory_only(key: str) -> None:
    with pytest.raises(InputError, match="is not the name of a shared memory object|cannot be opened"):
        SharedMemory().register("r", key, 0, 1)


def test_links_and_pipes_are_no_regions(file: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 100)
    link, pipe = file.with_name(f"{KEY}_link"), file.with_name(f"{KEY}_pipe")
    try:
        link.symlink_to(secret)
        os.mkfifo(pipe)
        for path in (link, pipe):
            with pytest.raises(InputError, match="cannot be opened|is not a shared memory object"):
                SharedMemory().register("r", path.name, 0, 1)
    finally:
        link.unlink()
        pipe.unlink()


def test_registering_says_what_is_wrong(memory: SharedMemory) -> None:
    with pytest.raises(InputError, match="'r' is registered already"):
        memory.register("r", KEY, 0, 10)
    with pytest.raises(InputError, match="would end at byte 201; object '.*' has 200"):
        memory.register("s", KEY, 1, 200)
    for offset, size in ((-1, 5), (0, 0), (0, -5)):
        with pytest.raises(InputError, match="expected some"):
            memory.register("s", KEY, offset, size)
    with pytest.raises(InputError, match="needs a name"):
        memory.register("", KEY, 0, 1)
    with pytest.raises(RequestError, match="'s' is not registered; registered are: r"):
        memory.status("s")


def test_regions_are_bounded_in_number_and_let_go(file: Path) -> None:
    def files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before, memory = files(), SharedMemory()
    for i in range(MAX_REGIONS):
        if files() > 900:
            break
        memory.register(str(i), KEY, 0, 1)
    else:
        with pytest.raises(RequestError, match="which is all there can be"):
            memory.register("more", KEY, 0, 1)
    memory.unregister("0")
    memory.unregister("0")
    memory.unregister()
    assert files() == before
    assert memory.status() == []


def test_a_server_that_others_can_reach_shares_no_memory() -> None:
    with pytest.raises(RequestError, match="open to other machines") as caught:
        SharedMemory(allowed=False).register("r", KEY, 0, 1)
    assert caught.value.status == 403
    assert [is_local(h) for h in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "192.168.1.4", "box")] == [
        *(True, True, True),
        *(False, False, False),
    ]


def test_places_that_are_none() -> None:
    for region, offset, size in (
        ("", 0, 1),
        (5, 0, 1),
        ("r", -1, 1),
        ("r", 0, None),
        ("r", True, 1),
        ("r", 0, 1 << 63),
    ):
        with pytest.raises(InputError, match="Input 'x': shared_memory_"):
            Place.of("Input 'x'", region, offset, size)
