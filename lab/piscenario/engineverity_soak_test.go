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

// verityMiB is what lies beside the program in the image whose starts are timed.
const verityMiB = 256

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
	load string // the command that loads its image
	mark []byte // what lies in it beside its program
}

// newSealing boots a Pi, names an approver, and loads an image of size bytes.
func newSealing(t *testing.T, size int) sealing {
	t.Helper()
	file, key := approvers(t)
	mark := make([]byte, size)
	rand.NewChaCha8([32]byte{7}).Read(mark) // never fails
	disk, length, envelope := approvedImage(t, "sealed", string(mark), func(a approval.Approval) ([]byte, error) { return a.Sign(key) })
	m := boot(t, cardOf(t, provisioned(t).Card), func(c *pi.Config) { c.Disks = []string{disk} })
	running(t, m)
	s := sealing{m, t, fmt.Sprintf("head -c %d /dev/vdb | %sload", length, docker), mark}
	s.sh(`printf %s "$1" >/etc/portcullis/approvers.json; systemctl restart verifierd.service; systemctl start `+engineUnit, file)
	fit(t, m)
	s.sh(`printf %s "$1" >/tmp/approval; portcullis approvals add /tmp/approval`, envelope)
	began := time.Now()
	s.sh(s.load)
	t.Logf("%d bytes loaded in %.1f s", size, time.Since(began).Seconds())
	return s
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

// start is how long a start takes with nothing in memory, ms; the container is removed.
func (s sealing) start() int {
	s.t.Helper()
	ms, err := strconv.Atoi(s.sh(`id=$(` + docker + `create portcullis/approved:sealed-1 say hello); sync; echo 3 >/proc/sys/vm/drop_caches
		t=$(date +%s%3N); ` + docker + `start $id >/dev/null; echo $(($(date +%s%3N)-t)); ` + docker + `rm -f $id >/dev/null`))
	if err != nil {
		s.t.Fatal(err)
	}
	return ms
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
	s := newSealing(t, 40<<10)
	s.start()
	s.held(guard.LayersSealed, "")
	s.readOnly()
	s.heldOpen()
	s.start()
	s.held(guard.LayersHashed, "busy")
	s.sh("systemctl stop held-open")
	s.start()
	s.held(guard.LayersSealed, "")
	s.readOnly()

	const run = docker + "run --rm portcullis/approved:sealed-1 say hello"
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

// TestEngineDiskStartTimes logs how long starts of a large image take with verity and
// without; the processor is emulated.
func TestEngineDiskStartTimes(t *testing.T) {
	s := newSealing(t, verityMiB<<20)
	middle := func() int {
		all := []int{s.start(), s.start(), s.start()}
		slices.Sort(all)
		return all[1]
	}
	t.Logf("first start, which gives the files verity: %d ms", s.start())
	s.held(guard.LayersSealed, "")
	t.Logf("with verity: %d ms", middle())
	s.heldOpen()
	t.Logf("first start without verity: %d ms", s.start())
	s.held(guard.LayersHashed, "busy")
	t.Logf("without verity: %d ms", middle())
	powerOff(t, s.Machine)
}
