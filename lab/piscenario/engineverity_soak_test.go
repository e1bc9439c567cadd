//go:build soak

package piscenario

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/lab/pi"
	"portcullis/verifier/approval"
	"portcullis/verifier/guard"
)

// docker speaks to the guard.
const docker = "docker -H " + guardSocket + " "

// startMiB are what lies beside the program in the images whose starts are timed.
var startMiB = []int{1, 64, 256}

// layersOf is how the status says that layers are held.
func layersOf(t *testing.T, m *pi.Machine) (layers, detail string) {
	t.Helper()
	// Its exit code is about the PC as well.
	r, err := m.Exec(t.Context(), "portcullis", "status", "--json")
	if err != nil {
		t.Fatal(err)
	}
	var s struct {
		Verifier struct {
			Layers string `json:"layers"`
			Detail string `json:"layers_detail"`
		} `json:"verifier"`
	}
	if err := json.Unmarshal(r.Stdout, &s); err != nil {
		t.Fatal(err)
	}
	return s.Verifier.Layers, s.Verifier.Detail
}

// sealing is a Pi with an engine behind the guard.
type sealing struct {
	*pi.Machine
	t    *testing.T
	load string // the command that loads its first image
	mark []byte // what lies in that beside its program
}

// imageName is what the guard calls the image of a number, from 0.
func imageName(n int) string { return fmt.Sprintf("portcullis/approved:sealed%d-1", n) }

// newSealing boots a Pi, names an approver, and loads images of these sizes in bytes, until its disk
// has no room for the next. It waits until the files of each are sealed. It tells how many were loaded.
func newSealing(t *testing.T, sizes ...int) (sealing, int) {
	t.Helper()
	file, key := approvers(t)
	var first []byte
	var disks, loads, envelopes []string
	for n, size := range sizes {
		mark := make([]byte, size)
		rand.NewChaCha8([32]byte{7, byte(n)}).Read(mark) // never fails
		disk, length, envelope := approvedImage(t, fmt.Sprintf("sealed%d", n), string(mark), func(a approval.Approval) ([]byte, error) { return a.Sign(key) })
		if n == 0 {
			first = mark
		}
		disks, envelopes = append(disks, disk), append(envelopes, envelope)
		loads = append(loads, fmt.Sprintf("head -c %d /dev/vd%c | %sload", length, 'b'+n, docker))
	}
	m := boot(t, cardOf(t, provisioned(t).Card), func(c *pi.Config) { c.Disks = disks })
	running(t, m)
	s := sealing{m, t, loads[0], first}
	// On a busy host the engine may not wait long enough for its containerd: systemd starts it again.
	s.sh(`printf %s "$1" >/etc/portcullis/approvers.json; systemctl restart verifierd.service; systemctl start --no-block `+engineUnit, file)
	fit(t, m)
	for n, size := range sizes {
		// The archive is there three times for a while: kept, as the engine takes it, and unpacked.
		if free, err := strconv.Atoi(s.sh("df -B1 --output=avail /var/lib/docker | tail -n 1")); err != nil || free < 5*size/2+64<<20 {
			t.Logf("no room for %d bytes: %d are free, %v", size, free, err)
			return s, n
		}
		s.sh(`printf %s "$1" >/tmp/approval; portcullis approvals add /tmp/approval`, envelopes[n])
		began := time.Now()
		s.sh(loads[n])
		loaded := time.Since(began)
		s.sealedBy(n + 1)
		t.Logf("%d bytes loaded in %.1f s, sealed %.1f s after that", size, loaded.Seconds(), (time.Since(began) - loaded).Seconds())
	}
	return s, len(sizes)
}

// sealedBy waits until verifierd has told n times that it has sealed an image.
func (s sealing) sealedBy(n int) {
	s.t.Helper()
	s.sh(fmt.Sprintf(`i=0; while [ $(journalctl -b --no-pager -o cat -u verifierd.service | grep -c image.sealed) -lt %d ]; do
		i=$((i+1)); [ $i -lt 600 ] || { journalctl -b --no-pager -n 40 -u verifierd.service; exit 1; }; sleep 1; done`, n))
}

func (s sealing) sh(script string, arguments ...string) string {
	s.t.Helper()
	return strings.TrimSpace(output(s.t, s.Machine, append([]string{"sh", "-ec", script, "sh"}, arguments...)...))
}

// file is where the mark lies in the engine's store.
func (s sealing) file() string {
	s.t.Helper()
	return s.sh("find /var/lib/docker/overlay2/*/diff/mark -size " + strconv.Itoa(len(s.mark)) + "c")
}

// held compares how layers are held, by the status.
func (s sealing) held(want, why string) {
	s.t.Helper()
	if layers, detail := layersOf(s.t, s.Machine); layers != want || !strings.Contains(detail, why) {
		s.t.Errorf("layers are %q: %s", layers, detail)
	}
}

// start is how long a start of the first image takes.
func (s sealing) start() int {
	s.t.Helper()
	return s.startOf(docker, imageName(0))
}

// startOf is how long a start takes with nothing in memory, ms; the container is removed.
func (s sealing) startOf(docker, image string) int {
	s.t.Helper()
	ms, err := strconv.Atoi(s.sh(`id=$(` + docker + `create --network none ` + image + ` say hello); sync; echo 3 >/proc/sys/vm/drop_caches
		t=$(date +%s%3N); ` + docker + `start $id >/dev/null; echo $(($(date +%s%3N)-t)); ` + docker + `rm -f $id >/dev/null`))
	if err != nil {
		s.t.Fatal(err)
	}
	return ms
}

// bare is Docker's client to the engine of bareEngine.
const bare = "docker -H unix:///run/bare.sock "

// bareEngine ends verifierd and its engine, and starts an engine on the same store that nobody
// stands before: no guard, no plugin, no runtime that asks, one socket.
func (s sealing) bareEngine() {
	s.t.Helper()
	s.sh(`systemctl stop verifierd.service ` + engineUnit + `
		sed -e 's|unix://[^"]*|unix:///run/bare.sock|' -e '/authorization-plugins/d' -e '/"group"/d' -e '/"default-runtime"/d' /etc/docker/daemon.json >/tmp/bare.json
		systemd-run --quiet --unit bare --property Type=notify --property Delegate=yes --property TimeoutStartSec=10min dockerd --config-file /tmp/bare.json
		` + bare + `info >/dev/null`)
}

// guardedEngine ends the engine of bareEngine, and starts verifierd and its engine.
func (s sealing) guardedEngine() {
	s.t.Helper()
	s.sh(`systemctl stop bare; systemctl start verifierd.service; systemctl start --no-block ` + engineUnit)
	fit(s.t, s.Machine)
}

// readOnly tries to write to the mark as root.
func (s sealing) readOnly() {
	s.t.Helper()
	refused(s.t, s.Machine, "not permitted", "sh", "-c", "echo x >>"+s.file())
	refused(s.t, s.Machine, "not permitted", "truncate", "-s", "0", s.file())
}

// heldOpen puts the same bytes into another file, which somebody has open: no verity can be had.
func (s sealing) heldOpen() {
	s.t.Helper()
	s.sh("cp -a $1 $1.new; mv $1.new $1; systemd-run --quiet --unit held-open sh -c 'exec sleep 3600 >>'$1", s.file())
}

// TestInvariant07_EngineDiskSealsLayers: on the engine's disk the files of an image that was started
// have fs-verity, of the Pi's own kernel. Root cannot write to them; a file in the place of one
// is found, and blocks that were changed below the file system are not shown to anybody.
func TestInvariant07_EngineDiskSealsLayers(t *testing.T) {
	s, _ := newSealing(t, 40<<10)
	// Nothing of it was started.
	s.held(guard.LayersSealed, "")
	s.readOnly()
	s.start()
	s.held(guard.LayersSealed, "")
	s.heldOpen()
	s.start()
	s.held(guard.LayersHashed, "busy")
	s.sh("systemctl stop held-open")
	s.start()
	s.held(guard.LayersSealed, "")
	s.readOnly()

	const run = docker + "run --rm portcullis/approved:sealed0-1 say hello"
	s.sh("cp -a $1 $1.new; printf x | dd of=$1.new bs=1 seek=5000 conv=notrunc status=none; mv $1.new $1", s.file())
	refused(t, s.Machine, guard.ReasonImageStore, "sh", "-c", run)
	s.sh(s.load) // unpacked anew
	if said := s.sh(run); said != "hello" {
		t.Errorf("loaded again it says %q", said)
	}

	// The second block of the file, on the disk below the file system.
	blocks := s.sh("filefrag -e -b4096 $1", s.file())
	first := regexp.MustCompile(`(?m)^\s*0:\s+0\.\.\s*[1-9][0-9]*:\s+([0-9]+)\.\.`).FindStringSubmatch(blocks)
	if first == nil {
		t.Fatalf("where the file begins: %s", blocks)
	}
	s.sh(`sync; head -c 4096 /dev/zero | dd of=$1 bs=4096 seek=$(($2+1)) oflag=direct conv=notrunc status=none; echo 3 >/proc/sys/vm/drop_caches`,
		engineDisk(t, s.Machine), first[1])
	refused(t, s.Machine, "Input/output error", "cat", s.file())
	s.sh(run) // its program is another file: nothing of this one is read
	s.sh(s.load)
	whole := sha256.Sum256(s.mark)
	if got := s.sh("sha256sum <" + s.file() + " | cut -c1-64"); got != hex.EncodeToString(whole[:]) {
		t.Errorf("loaded again the file has the digest %s", got)
	}
	powerOff(t, s.Machine)
}

// How often the guard and the engine without it take turns, and how many starts of each image
// are timed in one.
const (
	startTurns = 2
	turnStarts = 3
)

// TestEngineDiskStartTimes logs how long starts take behind the guard, with the layers sealed, and at
// an engine that nothing stands before, of the same images on the same disk with nothing in
// memory, in turns. The processor is emulated.
func TestEngineDiskStartTimes(t *testing.T) {
	s, images := newSealing(t, startMiB[0]<<20, startMiB[1]<<20, startMiB[2]<<20)
	s.held(guard.LayersSealed, "")
	for n := range images {
		t.Logf("%d MiB: first start %d ms", startMiB[n], s.startOf(docker, imageName(n)))
	}
	behind, alone := make([][]int, images), make([][]int, images)
	// The first start of an engine's life is not counted.
	starts := func(docker string, times [][]int) {
		s.startOf(docker, imageName(0))
		for range turnStarts {
			for n := range images {
				times[n] = append(times[n], s.startOf(docker, imageName(n)))
			}
		}
	}
	for turn := range startTurns {
		if turn > 0 {
			s.guardedEngine()
		}
		starts(docker, behind)
		s.held(guard.LayersSealed, "")
		s.bareEngine()
		starts(bare, alone)
		t.Logf("ms behind the guard %v, without it %v", behind, alone)
	}
	for n := range images {
		with, without := middle(behind[n]), middle(alone[n])
		t.Logf("%d MiB: median sealed %d ms, without the guard %d ms: ratio %.2f", startMiB[n], with, without, float64(with)/float64(without))
	}
	powerOff(t, s.Machine)
}

// middle is the median, of an even number the mean of the two.
func middle(all []int) int {
	all = slices.Sorted(slices.Values(all))
	return (all[(len(all)-1)/2] + all[len(all)/2]) / 2
}
