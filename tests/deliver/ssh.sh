#!/bin/sh
# A local stand-in for ssh: takes its arguments, and runs the command in a shell with another home folder.
#
# STAND_IN_HOME    the device's home folder
# STAND_IN_PATH    the device's PATH
# STAND_IN_CUT     file with a number and a name: so many bytes reach the file of that name, then the line is cut
# STAND_IN_BLOCKS  the largest file there, in blocks of 512 bytes: a disk that is full
# STAND_IN_LOG     file that hears of every command
set -u
master=
while [ $# -gt 0 ]; do
  case $1 in
    -o | -p | -i | -S | -F) shift 2 ;;
    -O) exit 0 ;;
    -M | -N | -f) master=yes; shift ;;
    --) shift; break ;;
    *) break ;;
  esac
done
case $1 in *unreachable*) echo "ssh: connect to host $1 port 22: Connection refused" >&2; exit 255 ;; esac
[ -z "$master" ] || exit 0
shift
[ -z "${STAND_IN_LOG:-}" ] || echo "$*" >>"$STAND_IN_LOG"
cd "$STAND_IN_HOME" || exit 255
HOME=$STAND_IN_HOME PATH=$STAND_IN_PATH
export HOME PATH
[ -z "${STAND_IN_BLOCKS:-}" ] || ulimit -f "$STAND_IN_BLOCKS"
if [ -n "${STAND_IN_CUT:-}" ] && [ -s "$STAND_IN_CUT" ]; then
  read -r count name <"$STAND_IN_CUT"
  case $* in *'cat >>'*"/$name"*)
    rm -f "$STAND_IN_CUT"
    head -c "$count" | /bin/sh -c "$*"
    echo "client_loop: send disconnect: Broken pipe" >&2
    exit 255 ;;
  esac
fi
exec /bin/sh -c "$*"
