//go:build soak

package piscenario

import (
	"bytes"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"portcullis/lab/dockerd"
	"portcullis/lab/pi"
	"portcullis/verifier/approval"
	verified "portcullis/verifier/image"
)

// approvedImage is an image for the Pi, as an archive on a disk, and its approval of this
// name. mark is what lies in it beside its program.
func approvedImage(t *testing.T, name, mark string, sign func(approval.Approval) ([]byte, error)) (disk string, size int, envelope string) {
	t.Helper()
	program, err := dockerd.ProbeFor(t.Context(), "arm64")
	if err != nil {
		t.Fatal(err)
	}
	i, err := dockerd.MakeFor("arm64", name+":1", program, mark)
	if err != nil {
		t.Fatal(err)
	}
	read, err := verified.Read(t.Context(), bytes.NewReader(i.Tar), t.TempDir(), verified.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	b, err := sign(approval.Approval{Schema: approval.Schema, Name: name, Version: 1, Purpose: "task", Image: read.Image(),
		Profile: approval.Profile{User: "1:1", Network: approval.NetworkNone, AnyCommand: true,
			Limits: approval.Limits{MemoryBytes: 32 << 20, Pids: 16, MilliCPU: 500}},
		NotBefore: time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour)})
	if err != nil {
		t.Fatal(err)
	}
	disk = filepath.Join(bigDir(t), "image.raw")
	if err := os.WriteFile(disk, i.Tar, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(disk, int64(len(i.Tar)+511)/512*512); err != nil {
		t.Fatal(err)
	}
	return disk, len(i.Tar), string(b)
}

// TestInvariant07_EngineDiskIsFilledAgain: with approvers in the settings the engine starts by
// itself. An approved image runs; after a restart of the Pi the engine's disk is another one,
// and the image runs again without having been loaded by anybody.
func TestInvariant07_EngineDiskIsFilledAgain(t *testing.T) {
	file, key := approvers(t)
	disk, size, envelope := approvedImage(t, "probe", "soak", func(a approval.Approval) ([]byte, error) { return a.Sign(key) })
	c, err := pi.NewCard(image(t, pi.Variant{}).Card, bigDir(t), 0)
	if err == nil {
		err = c.Seed(seed(t) + "approvers: '" + file + "'\n")
	}
	if err != nil {
		t.Fatal(err)
	}
	m := boot(t, c, func(c *pi.Config) { c.Disks = []string{disk} })
	running(t, m)
	fit(t, m)
	engineDisk(t, m)
	load := "head -c " + strconv.Itoa(size) + " /dev/vdb | docker -H " + guardSocket + " load"
	refused(t, m, "image-unapproved", "sh", "-c", load)
	output(t, m, "sh", "-c", `printf %s "$1" >/tmp/approval && portcullis approvals add /tmp/approval`, "sh", envelope)
	began := time.Now()
	output(t, m, "sh", "-c", load)
	t.Logf("loaded in %.1f s", time.Since(began).Seconds())
	runs := func() {
		t.Helper()
		if out := output(t, m, "docker", "-H", guardSocket, "run", "--rm", "portcullis/approved:probe-1", "say", "hello"); strings.TrimSpace(out) != "hello" {
			t.Errorf("the container said %q", out)
		}
	}
	runs()
	head := func() string {
		return output(t, m, "sh", "-c", "dd if=/var/lib/portcullis/store/disk bs=4096 count=1 iflag=direct 2>/dev/null | sha256sum")
	}
	before := head()
	output(t, m, "sh", "-c", "echo mark >/var/lib/docker/mark")
	if err := m.Reboot(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect(t, m, `portcullis: stage=switch-root`)
	expect(t, m, `portcullis: stage=switch-root`)
	running(t, m)
	fit(t, m)
	began = time.Now()
	engineDisk(t, m)
	refused(t, m, "No such file", "cat", "/var/lib/docker/mark")
	if head() == before {
		t.Error("the engine's disk begins as before the restart")
	}
	for end := time.Now().Add(bootLimit); !strings.Contains(output(t, m, "docker", "-H", guardSocket, "images"), "portcullis/approved"); time.Sleep(time.Second) {
		if time.Now().After(end) {
			t.Fatalf("the image does not come back:\n%s", output(t, m, "journalctl", "-b", "--no-pager", "-u", "verifierd"))
		}
	}
	t.Logf("filled again within %.1f s of a fit engine", time.Since(began).Seconds())
	runs()
	for _, l := range strings.Split(output(t, m, "ps", "-C", "verifierd,dockerd,containerd", "-o", "comm,rss"), "\n") {
		t.Log(l)
	}
	powerOff(t, m)
}
