"""What this machine has, what is missing, and the command that fixes it. Exit code 1 only if no runtime can run a
model here.

  edgekit doctor
"""

from __future__ import annotations

import argparse
from pathlib import Path

from edgekit.cli.output import print_json, print_table, print_text
from edgekit.doctor import Diagnosis, examine
from edgekit.errors import UsageError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of `edgekit doctor`."""
    parser.add_argument(
        "--root", type=Path, default=Path("/"), metavar="DIR", help="read /proc, /sys and /etc of a recorded tree"
    )


def run(args: argparse.Namespace) -> int:
    """Carry out `edgekit doctor`; returns 1 if nothing here can run a model."""
    if not args.root.is_dir():
        raise UsageError(f"--root {args.root} is not a folder; expected the root of a file tree.")
    diagnosis = examine(args.root)
    if args.json:
        print_json(diagnosis)
    else:
        _print(diagnosis)
    return 0 if diagnosis.can_run else 1


def _print(diagnosis: Diagnosis) -> None:
    area = ""
    rows: list[list[object]] = []
    for f in diagnosis.findings:
        rows.append([f.area if f.area != area else "", f.name, f.status, f.fact])
        if f.fix:
            rows.append(["", "", "", f"  fix: {f.fix}"])
        area = f.area
    print_table(["", "what", "status", "fact"], rows)
    print_text("")
    works = [c.name for c in diagnosis.commands if c.works]
    print_text(f"works now: {', '.join(works)}")
    for command in diagnosis.commands:
        if not command.works:
            print_text(f"edgekit {command.name} lacks {', '.join(command.lacks)}. Run: {command.fix}")
    if not diagnosis.can_run:
        print_text("nothing here can run a model. Run: pip install 'edgekit[cpu]'")
