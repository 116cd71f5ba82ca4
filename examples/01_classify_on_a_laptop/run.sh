#!/usr/bin/env bash
# From PyTorch to labels of picture files. Everything it makes lies in the current folder.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"

[ -d digits_cnn.edge ] || edgekit export "$here/../../models/digits_cnn.py" -o digits_cnn.edge
python "$here/../digits.py" digits --count 8
edgekit run digits_cnn.edge digits/*.png --top 2
