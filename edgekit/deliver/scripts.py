"""What runs on a device, in POSIX shell: it needs coreutils and nothing of edgekit.

Beside the packages of a folder lies `.edgekit/NAME.edge/`, which servers do not look into:

    incoming-DIGEST/NAME.edge    a package on its way
    v000002-DIGEST/NAME.edge     the version that NAME.edge, a symbolic link, points to
    v000001-DIGEST/NAME.edge     the one before
    w000003-DIGEST/NAME.edge     one that was taken back

A version is put in place by renaming a link, which is one step for everybody who looks.
"""

from __future__ import annotations

SAME = """
cd -- "$1" 2>/dev/null || exit 1
[ "$2" = signed ] || [ ! -e signature.json ] || exit 1
while read -r sum size file; do
  [ -f "$file" ] && [ "$(($(wc -c <"$file")))" = "$size" ] || exit 1
  got=$(sha256sum <"$file") && [ "${got%% *}" = "$sum" ] || exit 1
done
"""
"""$1: a package; $2: "signed" if the list on standard input (digest, size, name) holds a signature. Exit code 0: it is
that package."""

SURVEY = """
LC_ALL=C; export LC_ALL
command -v sha256sum >/dev/null || { echo "sha256sum is not installed there" >&2; exit 1; }
[ -z "$3" ] || [ -d "$3" ] || { echo "there is no folder $3" >&2; exit 1; }
mkdir -p -- "$1" || exit 1
same() {
  [ -f "$1" ] && [ "$(($(wc -c <"$1")))" = "$3" ] || return 1
  got=$(sha256sum <"$1") && [ "${got%% *}" = "$2" ]
}
while read -r sum size file; do
  new=$1/$file
  case $file in */*) mkdir -p -- "${new%/*}" || exit 1 ;; esac
  if [ -f "$new" ]; then
    if same "$new" "$sum" "$size"; then echo "have $size $file"; continue; fi
    got=$(($(wc -c <"$new")))
    if [ "$got" -lt "$size" ]; then echo "part $got $file"; continue; fi
    rm -f -- "$new" || exit 1
  fi
  if same "$2/$file" "$sum" "$size"; then
    ln -- "$2/$file" "$new" 2>/dev/null || cp -- "$2/$file" "$new" || exit 1
    echo "have $size $file"
  else
    echo "part 0 $file"
  fi
done
set -- $(df -Pk "$1" | tail -n 1)
echo "free ${4:-0} kB"
"""
"""$1: where a package is to be; $2: one that may hold some of its files already; $3: a folder that must be there, or
empty; standard input: a list as for SAME. Says how much of each file is there, and how much room is."""

APPEND = """
[ "$2" = 0 ] || [ "$(($(wc -c <"$1")))" = "$2" ] || { echo "another push writes the same package" >&2; exit 1; }
cat >>"$1"
"""
"""$1: a file; $2: the bytes that it has. Adds standard input."""

DISCARD = """
rm -rf -- "$1"
rmdir -- "${1%/*}" "${1%/*/*}" "${1%/*/*/*}" 2>/dev/null
exit 0
"""
"""$1: a package that came in. Removes it, and the folders of edgekit above it that are empty then."""

FIND_EDGEKIT = """
find_edgekit() {
  case $1 in
    "~/"*) command -v "$HOME/${1#??}"; return ;;
    ?*) command -v "$1"; return ;;
  esac
  command -v edgekit && return
  for found in "$HOME/.local/bin/edgekit" /opt/edgekit/bin/edgekit; do
    [ -x "$found" ] && { echo "$found"; return; }
  done
  return 1
}
"""

SELF_TEST = (
    FIND_EDGEKIT
    + """
found=$(find_edgekit "$1") || { echo none; exit 0; }
echo "$found"
"$found" verify "$2" --json
"""
)
"""$1: the device's edgekit, or empty; $2: a package. First line: the edgekit that was found, or none; then what
`edgekit verify --json` says."""

COMPILE = (
    FIND_EDGEKIT
    + """
found=$(find_edgekit "$1") || { echo none; exit 0; }
echo "$found"
place=$2; shift 2
exec 3<&0
"$found" compile "$place" --json "$@" </dev/null 3<&- &
job=$!
{ cat <&3 >/dev/null; kill "$job"; } >/dev/null 2>&1 &
watch=$!
wait "$job"; code=$?
kill "$watch" 2>/dev/null
exit "$code"
"""
)
"""$1: as for SELF_TEST; $2: a package; others: arguments of `edgekit compile`. It is ended when the one who asked is
gone, which the end of standard input tells. First line as for SELF_TEST, then what `edgekit compile --json` says."""

READ = """
cat -- "$1"
"""
"""$1: a file. Says what is in it."""

_LINK = """
alone() { exec 9>>"$1/lock"; ! command -v flock >/dev/null || flock 9; }
put() {
  link=$1/.edgekit/$2/link.$$
  rm -f -- "$link"; ln -s -- ".edgekit/$2/$3/$2" "$link" || return 1
  if [ ! -d "$1/$2" ] || [ -L "$1/$2" ]; then mv -fT -- "$link" "$1/$2"; return; fi
  kept=$1/.edgekit/$2/v000000-before
  mkdir -p -- "$kept" || return 1
  if python3 -c "$exchange" "$link" "$1/$2" 2>/dev/null; then mv -T -- "$link" "$kept/$2"; return; fi
  mv -T -- "$1/$2" "$kept/$2" || return 1
  mv -T -- "$link" "$1/$2" || { mv -T -- "$kept/$2" "$1/$2"; return 1; }
}
exchange='
import ctypes, os, sys
a, b = map(os.fsencode, sys.argv[1:])
sys.exit(ctypes.CDLL(None).renameat2(-100, a, -100, b, 2) != 0)
'
"""

SWITCH = (
    _LINK
    + """
home=$1/.edgekit/$2
alone "$home"
before=$(readlink "$1/$2"); before=${before%/*}; before=${before##*/}
[ -L "$1/$2" ] || [ ! -d "$1/$2" ] || before=v000000-before
last=0
for one in "$home"/v[0-9]*-*; do
  [ -d "$one" ] || continue
  one=${one##*/v}; last=$(expr "${one%%-*}" + 0)
done
version=v$(printf %06d "$(expr "$last" + 1)")-$3
find "$home/incoming-$3" -exec sync {} + 2>/dev/null || sync
mv -T -- "$home/incoming-$3" "$home/$version" || exit 1
put "$1" "$2" "$version" || { mv -T -- "$home/$version" "$home/incoming-$3"; exit 1; }
sync "$home" "$1" 2>/dev/null || sync
[ -d "$home/$before" ] || before=
echo "$version $before"
count=0
for one in "$home"/v[0-9]*-*; do count=$(expr "$count" + 1); done
for one in "$home"/v[0-9]*-*; do
  case ${one##*/} in "$version" | "$before") continue ;; esac
  [ "$count" -gt "$(expr "$4" + 1)" ] || continue
  rm -rf -- "$one"; count=$(expr "$count" - 1)
done
rm -rf -- "$home"/w[0-9]*-*
find "$home" -maxdepth 1 -name 'incoming-*' -mtime +0 -exec rm -rf -- {} +
exit 0
"""
)
"""$1: folder; $2: NAME.edge; $3: the digest of what came in; $4: how many versions to keep beside it. Says the version
that is in place now and the one that was."""

ROLL_BACK = (
    _LINK
    + """
home=$1/.edgekit/$2
[ ! -d "$home" ] || alone "$home"
now=$(readlink "$1/$2"); now=${now%/*}; now=${now##*/}
[ -n "$now" ] && [ -d "$home/$now" ] || { echo unknown; exit 0; }
before=
for one in "$home"/v[0-9]*-*; do
  [ "${one##*/}" = "$now" ] && break
  [ -d "$one/$2" ] && before=${one##*/}
done
[ -n "$before" ] || { echo "none $now"; exit 0; }
put "$1" "$2" "$before" || exit 1
sync "$home" "$1" 2>/dev/null || sync
rm -rf -- "$home/w${now#v}"
mv -T -- "$home/$now" "$home/w${now#v}"
echo "$before $now"
"""
)
"""$1: folder; $2: NAME.edge. Puts the version before the current one in place, and says both; `unknown` where nothing
was pushed, `none` where nothing is left to go back to."""
