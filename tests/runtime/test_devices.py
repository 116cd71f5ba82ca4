from __future__ import annotations

import pytest

from edgekit.errors import UsageError
from edgekit.runtime.devices import CPU, Place, one_device, parse_device, parse_devices


def test_devices_by_name() -> None:
    assert parse_device("cpu") == CPU
    assert parse_device("cuda") == parse_device(" CUDA:0 ") == Place("cuda", 0)
    assert str(parse_device("cuda:3")) == "cuda:3"


@pytest.mark.parametrize("text", ["gpu", "", "cuda:", "cuda:-1", "cuda:x", "0"])
def test_another_name_says_what_is_expected(text: str) -> None:
    with pytest.raises(UsageError, match="expected cpu, cuda or cuda:N"):
        parse_device(text)


def test_several_devices_by_name() -> None:
    assert parse_devices("cuda:1, cpu,cuda") == ("cuda:1", "cpu", "cuda:0")
    assert one_device(None, command="bench") is None
    assert one_device("cuda", command="bench") == "cuda:0"
    with pytest.raises(UsageError, match="bench uses one device at a time, and --device names 2"):
        one_device("cpu,cpu", command="bench")
    with pytest.raises(UsageError, match="Which device"):
        parse_devices(" , ")
