"""The HTTP door against its own OpenAPI document: schemathesis makes requests from it, right ones and wrong ones.

    pip install schemathesis
    python benchmarks/fuzz_openapi.py [--examples 100] [--schemathesis PATH]

A run counts as clean if nothing was answered 500, no answer had another status, type or shape than the document says,
and the server ends with 0 and no traceback in its log. Schemathesis brings 90 MB of packages of its own, so it is no
part of the development extra.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.serve.packages import identity_package, scaled_package
from tests.serve.running import served
from tests.tiny import tiny_package

CHECKS = ("not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=100, help="requests for each path and method")
    parser.add_argument("--schemathesis", default="schemathesis", help="the program")
    args = parser.parse_args()
    program = shutil.which(args.schemathesis)
    if program is None:
        sys.exit("schemathesis is not installed. Run: pip install schemathesis")
    with tempfile.TemporaryDirectory() as folder:
        tiny_package(Path(folder) / "tiny.edge")
        scaled_package(Path(folder) / "scaled.edge")
        identity_package(Path(folder) / "identity.edge")
        with served(folder) as server:
            command = [program, "run", f"{server.url}/v2/openapi.json", "--checks", ",".join(CHECKS)]
            command += ["--max-examples", str(args.examples), "--exclude-path-regex", "/(un)?load$", "--no-color"]
            return subprocess.run(command, cwd=folder).returncode


if __name__ == "__main__":
    raise SystemExit(main())
