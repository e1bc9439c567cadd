#!/bin/sh
# fuzz.sh DURATION [PACKAGE…] runs every fuzz target of the module for DURATION each,
# found by its name, one after the other. It fails at the first that finds something.
set -eu
time=${1:-10s}
[ $# -gt 0 ] && shift
found=0
for dir in $(go list -f '{{.Dir}}' "${@:-./...}"); do
  for target in $(grep -hos '^func Fuzz[A-Za-z0-9_]*' "$dir"/*_test.go | sed 's/^func //' | sort -u); do
    found=$((found + 1))
    echo "fuzz $(basename "$dir") $target"
    out=$(go test -run '^$' -fuzz "^$target\$" -fuzztime "$time" "$dir" 2>&1) || { echo "$out"; exit 1; }
    echo "$out" | tail -n 1
  done
done
[ "$found" -gt 0 ] || { echo "fuzz: no fuzz target found" >&2; exit 1; }
echo "fuzz: $found targets, $time each, nothing found"
