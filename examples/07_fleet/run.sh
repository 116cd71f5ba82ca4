#!/usr/bin/env bash
# Put a signed package on every device of a list, one after the other; at the first that fails, all go back.
#
#   run.sh X.edge KEY DEVICES.txt
#
# A line of DEVICES.txt: where to push to, and the URL of the server there, which watches the folder:
#   jetson@10.0.0.7:/srv/models http://10.0.0.7:8000
set -euo pipefail
: "${3:?is missing: run.sh X.edge KEY DEVICES.txt}"
package="$1" key="$2" devices="$3"
name="$(basename "$package" .edge)"
wait_s="${WAIT_S:-3}" tries="${TRIES:-10}"  # a server looks at its folder every 2 s; a try a second until it answers

[ -f "$key" ] || edgekit sign --new-key "$key"
edgekit sign "$package" --key "$key"
edgekit verify "$package" --verify-key "$key.pub"

done_so_far=()
back() {
  echo "$1 failed; going back on ${#done_so_far[@]} devices" >&2
  for place in "${done_so_far[@]}"; do edgekit push --rollback "$name" "$place" || true; done
  exit 1
}
while read -r place url; do
  [ -n "$place" ] || continue
  edgekit push "$package" "$place" </dev/null || back "$place"  # it tests itself there before it is put in place
  done_so_far+=("$place")
  sleep "$wait_s"
  curl -sf --retry "$tries" --retry-all-errors --retry-delay 1 "$url/v2/models/$name/ready" </dev/null || back "$url"
  echo "$place serves $name"
done <"$devices"
