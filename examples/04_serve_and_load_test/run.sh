#!/usr/bin/env bash
# A server, a load on it, and what it says of itself afterwards.
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
port="${1:-8000}" seconds="${2:-5}"
url="http://127.0.0.1:$port"

[ -d digits_cnn.edge ] || edgekit export "$here/../../models/digits_cnn.py" -o digits_cnn.edge
edgekit serve digits_cnn.edge --port "$port" --grpc-port off &
trap 'kill $! && wait $!' EXIT  # it answers what is in flight, then ends with 0
curl -sf --retry 50 --retry-connrefused --retry-delay 1 "$url/v2/health/ready"

python "$here/load.py" "$url" digits_cnn --clients 4 --seconds "$seconds"
curl -sf "$url/metrics" | grep -E '^edgekit_(requests|runs|failures)_total'
