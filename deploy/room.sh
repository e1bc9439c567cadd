#!/bin/sh
# room.sh GIB looks whether the disks have room for what is about to be built, before
# an hour has gone into it: GIB for the checkout's build directory, what lies there
# already counts, and 1 GiB for temporary files. Exit 1 says where, and what to delete.
set -eu
cd "$(dirname "$0")/.."

need=$(($1 * 1024 * 1024))
free() { df -Pk "$1" | awk 'NR == 2 {print $4}'; }
gib() { awk -v k="$1" 'BEGIN {printf "%.1f GiB", k / 1048576}'; }

there=0
[ ! -d build ] || there=$(du -skL build | cut -f1)
have=$(free .)
if [ $((have + there)) -lt "$need" ]; then
  echo "room: $(gib "$need") are needed below $PWD, and $(gib "$have") are free ($(gib "$there") lie in build/ already)." >&2
  echo "room: make clean empties build/; go clean -cache and apt-get clean give room elsewhere." >&2
  exit 1
fi
tmp=${TMPDIR:-/tmp}
[ -d "$tmp" ] || { echo "room: $tmp, which TMPDIR names, is no directory." >&2; exit 1; }
have=$(free "$tmp")
if [ "$have" -lt 1048576 ]; then
  echo "room: 1.0 GiB are needed in $tmp, and $(gib "$have") are free. TMPDIR names another directory." >&2
  exit 1
fi
