//go:build soak

package piscenario

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"regexp"
	"strings"
	"testing"
	"time"

	"portcullis/lab/pi"
	"portcullis/verifier/approval"
)

// Docker as the Pi's image has it.
const (
	guardSocket  = "unix:///run/portcullis/verifierd/docker.sock"
	engineSocket = "unix:///run/portcullis/verifierd/engine/docker.sock"
	engineUnit   = "portcullis-engine.service"
)

// approvers is a file of approvers with one key, and that key.
func approvers(t *testing.T) (string, ed25519.PrivateKey) {
	t.Helper()
	public, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	file, err := approval.Approvers{Threshold: 1, RevokeThreshold: 1, Keys: []ed25519.PublicKey{public}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return string(file), key
}

// refused runs a command that has to fail, and to say why.
func refused(t *testing.T, m *pi.Machine, reason string, argv ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	r, err := m.Exec(ctx, argv...)
	if err != nil {
		t.Fatal(err)
	}
	if said := string(r.Stdout) + string(r.Stderr); r.Exit == 0 || !strings.Contains(said, reason) {
		t.Errorf("%v: exit %d, not a refusal for %q: %s", argv, r.Exit, reason, said)
	}
}

// fit waits until verifierd has met its engine, and has found that it is locked.
func fit(t *testing.T, m *pi.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	var said string
	for ctx.Err() == nil {
		// Its exit code is about the PC as well.
		r, err := m.Exec(ctx, "portcullis", "status", "--json")
		if err != nil {
			t.Fatal(err)
		}
		said = string(r.Stdout)
		var s struct {
			Verifier struct {
				Fit bool `json:"fit"`
			} `json:"verifier"`
		}
		if json.Unmarshal(r.Stdout, &s) == nil && s.Verifier.Fit {
			return
		}
		time.Sleep(200 * time.Millisecond)
	}
	t.Fatalf("the verifier is not fit: %s\n%s", said, output(t, m, "journalctl", "-b", "--no-pager", "-n", "60", "-u", "verifierd", "-u", engineUnit, "-u", "portcullis-store"))
}

// engineDisk is the device that Docker's data lies on, and what the device-mapper calls it.
func engineDisk(t *testing.T, m *pi.Machine) string {
	t.Helper()
	device := strings.TrimSpace(output(t, m, "findmnt", "--noheadings", "--output", "SOURCE,FSTYPE", "/var/lib/docker"))
	name, fs, _ := strings.Cut(device, " ")
	node, ok := strings.CutPrefix(name, "/dev/")
	if !ok || strings.TrimSpace(fs) != "ext4" {
		t.Fatalf("Docker's data lies on %q", device)
	}
	if uuid := output(t, m, "cat", "/sys/block/"+node+"/dm/uuid"); strings.TrimSpace(uuid) != "CRYPT-PLAIN-portcullis-engine" {
		t.Errorf("%s is %q, not the disk with this boot's key", name, uuid)
	}
	return name
}

// TestInvariant07_EngineIsLocked: a running Pi without approvers is told some. The engine
// that then starts lies behind the verifier: who reaches it, what it runs, where its data lies.
func TestInvariant07_EngineIsLocked(t *testing.T) {
	m := boot(t, cardOf(t, provisioned(t).Card))
	running(t, m)
	began := time.Now()
	file, _ := approvers(t)
	output(t, m, "sh", "-c", `printf %s "$1" >/etc/portcullis/approvers.json && systemctl restart verifierd.service && systemctl start `+engineUnit, "sh", file)
	fit(t, m)
	t.Logf("from approvers to a fit engine: %.1f s", time.Since(began).Seconds())
	engineDisk(t, m)
	if s := output(t, m, "stat", "--format", "%a %U", "/run/portcullis/verifierd/engine"); s != "700 portcullis-verifier\n" {
		t.Errorf("the directory of the engine's socket: %q", s)
	}
	attestd := []string{"setpriv", "--reuid", "portcullis-attest", "--regid", "portcullis-attest", "--clear-groups"}
	refused(t, m, "permission denied", append(attestd, "docker", "-H", engineSocket, "version")...)
	refused(t, m, "stamp-missing", "docker", "-H", engineSocket, "ps")
	refused(t, m, "image-not-loaded", "docker", "-H", guardSocket, "run", "--rm", "sha256:"+strings.Repeat("0", 64))
	for _, l := range strings.Split(output(t, m, "ps", "-C", "verifierd,dockerd,containerd", "-o", "comm,rss,vsz"), "\n") {
		t.Log(l)
	}
	held := regexp.MustCompile(`VmHWM:\s+([0-9]+) kB`).FindStringSubmatch(output(t, m, "sh", "-c", "cat /proc/$(systemctl show --property MainPID --value verifierd)/status"))
	if held == nil || len(held[1]) > 5 || held[1] > "65536" && len(held[1]) == 5 {
		t.Errorf("verifierd holds %v kB, more than 64 MiB", held)
	}
	t.Logf("verifierd at most %v kB; all: %.1f s", held, time.Since(began).Seconds())
	powerOff(t, m)
}
