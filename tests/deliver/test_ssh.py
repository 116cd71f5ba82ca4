"""Words for a shell on another machine: nothing in them is ever run."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.deliver.ssh import Destination, Host, check_name
from edgekit.errors import DeviceError, UsageError
from tests.deliver.device import Device


@pytest.mark.parametrize(
    ("text", "host", "folder"),
    [
        ("jetson@10.0.0.7:/srv/models", "jetson@10.0.0.7", "/srv/models"),
        ("orin:models/", "orin", "models"),
        ("orin:~/my models", "orin", "my models"),
        ("orin:~", "orin", "."),
        ("orin:/", "orin", "/"),
        ("a@[fe80::1%eth0]:/m", "a@[fe80::1%eth0]", "/m"),
        ("[::1]:/m", "[::1]", "/m"),
    ],
)
def test_destinations(text: str, host: str, folder: str) -> None:
    assert Destination.parse(text) == Destination(host, folder)


ODD = ["", "orin", "orin:", ":/m", "-oProxyCommand=id:/m", "u@-o:/m", "a b:/m", "orin:/m;id", "orin:$(id)", "orin:-rf"]
ODD += ["orin:`id`", "orin:/m\nid", "orin:/m'", 'orin:/m"', "orin:/a*", "orin:/m\\x", "o'rin:/m", "a@b@c:/m", "orin:~a"]


@pytest.mark.parametrize("text", ODD)
def test_odd_destinations_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="user@host:/folder|is refused"):
        Destination.parse(text)


def test_a_folder_may_be_left_out_where_there_is_a_default() -> None:
    assert Destination.parse("orin", default=".cache/edgekit") == Destination("orin", ".cache/edgekit")


@pytest.mark.parametrize("name", ["a b", "-rf", "a;b", "$(id)", "a/../b", "../a", "/a", "a//b", "a\nb", "ä", ""])
def test_odd_names_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match="is refused"):
        check_name(name)
    assert check_name("engines/sm87-trt10.16-fp16.engine") == "engines/sm87-trt10.16-fp16.engine"


def test_words_arrive_as_they_are(device: Device) -> None:
    words = ["a b", "'", '"', "$HOME", "`id`", "\\", "*", "x\ny", "-n", "", ";exit 9"]
    with Host("orin") as host:
        answer = host.run(
            'for word in "$@"; do printf "<%s>" "$word"; done; cat; echo no >&2; exit 3', *words, data=b"!"
        )
    assert answer.out == "".join(f"<{word}>" for word in words) + "!"
    assert (answer.code, answer.said) == (3, "no")


def test_a_host_that_is_not_there_and_an_ssh_that_is_not_there(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DeviceError, match=r"unreachable cannot be reached: ssh: .* refused\. Try: ssh unreachable"):
        Host("unreachable").__enter__()
    monkeypatch.setenv("EDGEKIT_SSH", str(Path("/none/ssh")))
    with pytest.raises(DeviceError, match="Install OpenSSH's client"):
        Host("orin").__enter__()
