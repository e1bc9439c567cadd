#!/bin/sh
# soak.sh N runs what is too long for make test: the power of a Pi cut N times in its
# first boot and N times in an update, a Pi whose services are containers, every scenario through the built card, the long
# scenarios, every attack on the PC of lab/tamper, and the PC with the hardened kernel,
# which is built twice, in different directories, for the same bytes, a confidential machine (tier T2) that is played, a rack of two PCs, and
# the guard of Docker against every engine, the newest of which is built here. The full logs are in build/soak; the summary is printed at the end, and on every failure
# the exit code is 1. It runs as root in the checkout, after the programs are built.
set -u
n=${1:?how often the power is cut}
GO=${GO:-go}
logs=build/soak
mkdir -p "$logs"
failed=0

echo "soak: $n power cuts of each kind, seed ${PORTCULLIS_POWERCUT_SEED:-1}; log $logs/power.log"
PORTCULLIS_POWERCUTS=$n "$GO" test -timeout 24h -parallel 2 -count 1 -v -tags soak -run 'PowerCut|ZymbitCard|Engine(Is|Disk)|ServicesAre' ./lab/piscenario >"$logs/power.log" 2>&1 || failed=1
echo "soak: the scenarios through the card; log $logs/check.log"
bin/portcullis lab check --pi image >"$logs/check.log" 2>&1 || failed=1
echo "soak: the long scenarios; logs $logs/hardware.log, $logs/reboot.log"
bin/portcullis lab check --scenario changed-hardware >"$logs/hardware.log" 2>&1 || failed=1
bin/portcullis lab check --scenario reboot-ladder >"$logs/reboot.log" 2>&1 || failed=1
echo "soak: every attack of lab/tamper; log $logs/tamper.log"
bin/portcullis lab tamper --rounds 3 >"$logs/tamper.log" 2>"$logs/tamper.err" || failed=1
echo "soak: an hour of an honest busy PC; log $logs/honest.log"
bin/portcullis lab tamper --honest 1h >"$logs/honest.log" 2>"$logs/honest.err" || failed=1
echo "soak: the hardened kernel, built, built again, booted; log $logs/kernel.log"
{ bin/portcullis image kernel && bin/portcullis image kernel --again --place /another/place &&
  "$GO" test -timeout 1h -count 1 -v -tags soak -run HardenedKernel ./lab/tamper; } >"$logs/kernel.log" 2>&1 || failed=1
echo "soak: a confidential machine whose evidence nobody has signed, as no program for use takes it; log $logs/tsm.log"
"$GO" test -count 1 -v -tags mocktee -run 'TestTsm_' ./attestserver/expect >"$logs/tsm.log" 2>&1 || failed=1
echo "soak: a rack: two PCs behind one attestd; its ports as VLANs of a trunk; log $logs/rack.log"
"$GO" test -timeout 1h -count 1 -v -tags soak -run 'RackOfTwoPCs|RackOnVLANs' ./lab ./cmd/gatewayd >"$logs/rack.log" 2>&1 || failed=1
echo "soak: the guard against every engine of Docker; logs $logs/engine-*.log"
for e in machine machine+userns trixie trixie+userns v29 v29+userns v29-containerd; do
  # The Pi's services share its network, which engines with user namespaces do not do.
  case "$e" in *+userns) skip=ServicesAsContainers ;; *) skip='^$' ;; esac
  PORTCULLIS_ENGINE=$e "$GO" test -timeout 1h -count 1 -skip "$skip" ./verifier/guard ./cmd/verifierd >"$logs/engine-$e.log" 2>&1 || failed=1
  bin/portcullis lab bypass --engine "$e" --rounds 10000 >>"$logs/engine-$e.log" 2>&1 || failed=1
done

echo
sed -n -e '/summary: /,/^[^ ]/{/summary: /{s/.*summary: //;p};/^  *[0-9][0-9]* /p}' "$logs/power.log"
grep -hE '^ *--- FAIL|^panic: |^FAIL' "$logs/power.log" "$logs/tamper.log" "$logs/kernel.log" "$logs/tsm.log" "$logs/rack.log" "$logs"/engine-*.log
sed -n -e 's/.*summary: /  /p' -e '/built again: /p' "$logs/kernel.log"
grep -E '^(behind-tag-moved|[0-9]+ ways)|OPEN' "$logs"/engine-*.log
echo
cat "$logs/check.log" "$logs/tamper.log" "$logs/honest.log" "$logs/hardware.log" "$logs/reboot.log"
[ "$failed" = 0 ] && echo "soak: all of it holds" || echo "soak: something does not hold; see $logs"
exit "$failed"
