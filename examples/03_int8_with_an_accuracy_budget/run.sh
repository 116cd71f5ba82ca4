#!/usr/bin/env bash
# INT8 within a budget of points, or exit code 1: what a pipeline calls before it ships a model.
#
#   run.sh [BUDGET [OPTION OF quantize]...]
set -euo pipefail
models="$(cd "$(dirname "$0")/../../models" && pwd)"
budget="${1:-0.3}"  # points of the recipe's metric that INT8 may lose

[ -d digits_cnn.edge ] || edgekit export "$models/digits_cnn.py" -o digits_cnn.edge
edgekit quantize digits_cnn.edge --precision int8 --recipe "$models/digits_cnn.py" --max-drop "$budget" --force "${@:2}"
edgekit verify digits_cnn.edge  # what a device can do too: no recipe, no PyTorch
