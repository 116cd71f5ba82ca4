"""Every operator's kernel on this machine's GPU, against the reference: `python -m tests.plugins_trt.on_device [NAME]`.

compute-sanitizer runs this too, with `--tactics 1` to be done in time.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

from plugins_trt.launch import Launcher
from plugins_trt.operator import Call, KernelPlan, Operator
from plugins_trt.registry import operator, operators
from tests.plugins_trt.checks import assert_close


def assert_all_agree(
    chosen: Iterable[Operator],
    *,
    tactics: int | None = None,
    calls: int | None = None,
    before: Callable[[Operator, KernelPlan], None] = lambda op, plan: None,
) -> int:
    """Run the small examples with each tactic (the first `tactics` of them); the number of launches.

    `before` is called ahead of each launch.
    """
    launches = 0
    with Launcher() as gpu:
        for op in chosen:
            for call in op.small_examples()[:calls]:
                for tactic in op.tactics(call, gpu.sm)[:tactics]:
                    assert_agrees(gpu, op, call, tactic, before)
                    launches += 1
    return launches


def assert_agrees(
    gpu: Launcher, op: Operator, call: Call, tactic: int, before: Callable[[Operator, KernelPlan], None]
) -> None:
    arrays = op.sample(call)
    before(op, op.plan(call, tactic=tactic, sm=gpu.sm))
    got = gpu.run(op, call, *arrays, tactic=tactic)
    try:
        assert_close(got, op.reference(call, *arrays))
    except AssertionError as error:
        given = ", ".join(map(str, call.inputs))
        raise AssertionError(f"{op.name}({given}), tactic {tactic}, sm_{gpu.sm}: {error}") from error


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("operators", nargs="*")
    parser.add_argument("--tactics", type=int)
    args = parser.parse_args()
    chosen = [operator(name) for name in args.operators] or list(operators().values())
    print(f"{assert_all_agree(chosen, tactics=args.tactics)} launches agree with the reference")


if __name__ == "__main__":
    main()
