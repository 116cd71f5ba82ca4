from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgekit.errors import BackendError
from edgekit.tune.guard import Guard, run_command


def test_the_end_of_the_block_sets_back_once(tmp_path: Path) -> None:
    done = tmp_path / "done"
    with Guard({"argv": ["sh", "-c", f"echo back >> {done}"]}, manual="by hand"):
        assert not done.exists()
    assert done.read_text() == "back\n"
    with pytest.raises(KeyError), Guard({"argv": ["sh", "-c", f"echo again >> {done}"]}, manual="by hand"):
        raise KeyError
    assert done.read_text() == "back\nagain\n"


def test_what_fails_is_tried_again_and_then_said(tmp_path: Path) -> None:
    """The first attempt fails, the second does not."""
    mark = tmp_path / "mark"
    with Guard({"argv": ["sh", "-c", f"test -e {mark} || {{ touch {mark}; exit 1; }}"]}, manual="by hand"):
        pass
    with (
        pytest.raises(BackendError, match=r"could not be set back .*no such mode.*Run: by hand"),
        Guard({"argv": ["sh", "-c", "echo no such mode >&2; exit 3"]}, manual="by hand"),
    ):
        pass


def test_a_group_that_is_killed_is_set_back_too(tmp_path: Path) -> None:
    """kill -9 to the whole process group, as a shell or a service manager does."""
    done = tmp_path / "done"
    code = (
        "import time\nfrom edgekit.tune.guard import Guard\n"
        f"with Guard({{'argv': ['touch', {str(done)!r}]}}, manual='by hand'):\n    print('in', flush=True)\n"
        "    time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "in\n"
    assert not done.exists()
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    deadline = time.monotonic() + 20
    while not done.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_questions_are_answered_with_no(tmp_path: Path) -> None:
    run_command(["sh", "-c", f"read answer; echo $answer > {tmp_path / 'answer'}"])
    assert (tmp_path / "answer").read_text() == "no\n"
    with pytest.raises(BackendError, match="could not be run"):
        run_command([str(tmp_path / "absent")])
