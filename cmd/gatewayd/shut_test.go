package main

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	v1 "portcullis/api/portcullis/v1"
)

// TestInvariant04_KilledBeforeTheDiskStaysShut: a quarantine is answered when the kernel enforces
// it. gatewayd cannot write a byte, and is killed: the tables hold without it, and the
// one that comes after opens nothing, whatever its file says.
func TestInvariant04_KilledBeforeTheDiskStaysShut(t *testing.T) {
	for name, full := range map[string]bool{"the disk is full": true, "at once": false} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			r.start()
			r.listen(r.up, upIP+":80")
			r.run(time.Minute)
			r.grant("tcp", addrPort(upIP+":80"), time.Minute)
			s := r.stream(upIP + ":80")
			if full {
				r.must(unix.Prlimit(r.child.Process.Pid, unix.RLIMIT_FSIZE, &unix.Rlimit{}, nil))
			}
			r.must(r.phase(first, v1.Phase_PHASE_QUARANTINE, 0))
			if full {
				r.wait("gateway.failed", nil)
				if b, err := os.ReadFile(filepath.Join(r.dir, "state/gatewayd/state.json")); err != nil || !strings.Contains(string(b), `"phase":"attest"`) {
					t.Errorf("the state file is %s, %v: this shows nothing", b, err)
				}
			}
			r.kill(syscall.SIGKILL)
			r.routing()
			r.over(s, 3)
			r.start()
			if p := r.status().Phase; p != v1.Phase_PHASE_ATTEST && (full || p != v1.Phase_PHASE_QUARANTINE) {
				t.Errorf("it came back as %s", p)
			}
			r.routing()
			r.over(s, 1) // of those that the PC sends again, ever more seldom
			if c, err := r.dial(upIP+":80", 300*time.Millisecond); err == nil {
				c.Close()
				t.Error("a new flow of the grant passes")
			}
		})
	}
}

// A start that ends before the socket is there leaves the state file as closed as it was: an
// orderly boot of the Pi after it costs the PC nothing.
func TestAStartWithoutItsSocketKeepsTheLastWords(t *testing.T) {
	r := newRig(t)
	r.start()
	r.openBoot(first)
	r.kill(syscall.SIGTERM)
	file := filepath.Join(r.dir, "state/gatewayd/state.json")
	before, err := os.ReadFile(file)
	r.must(err)
	run := filepath.Join(r.dir, "run")
	r.must(os.Rename(run, run+".away"))
	r.must(os.WriteFile(run, nil, 0o600))
	r.refused("--config", r.config)
	after, err := os.ReadFile(file)
	r.must(err)
	if !strings.Contains(string(before), `"closed":true`) || string(after) != string(before) {
		t.Errorf("the state file was\n%s\nand is\n%s", before, after)
	}
}
