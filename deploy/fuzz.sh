#!/bin/sh
# fuzz.sh EXECUTIONS [PACKAGE[:TARGET]…] runs each fuzz target for that many executions
# (200000x), one after the other, and fails at the first that finds something. Without a
# package it runs every target of the module, found by its name.
#
# Executions, not seconds: at the end of a time limit `go test` can report its own
# deadline as a failure of the target (golang.org/issue/75804). The limit below is for a
# target that hangs.
set -eu
count=${1:-200000x}
limit=300s
[ $# -gt 0 ] && shift
[ $# -gt 0 ] || set -- $(go list ./...)
found=0
for what in "$@"; do
  dir=$(go list -f '{{.Dir}}' "${what%%:*}")
  case "$what" in
  *:*) targets=${what##*:} ;;
  *) targets=$(cat "$dir"/*_test.go 2>/dev/null | sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' | sort -u) ;;
  esac
  for target in $targets; do
    found=$((found + 1))
    echo "fuzz ${what%%:*} $target"
    out=$(timeout "$limit" go test -run '^$' -fuzz "^$target\$" -fuzztime "$count" "$dir" 2>&1) || {
      status=$?
      echo "$out"
      [ $status -ne 124 ] || echo "fuzz: $target did not end within $limit"
      exit 1
    }
    # go test passes when no target matches: that is a wrong name, not a success.
    case "$out" in *"no fuzz tests to fuzz"*) echo "fuzz: $dir has no target $target" >&2; exit 1 ;; esac
    echo "$out" | tail -n 1
  done
done
[ "$found" -gt 0 ] || { echo "fuzz: no fuzz target found" >&2; exit 1; }
echo "fuzz: $found targets, $count each, nothing found"
