package piscenario

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/images/fat"
	"portcullis/images/update"
	"portcullis/lab/channel"
	"portcullis/lab/pi"
)

// updateStick is a disk with these files of the host, for a Pi to read.
func updateStick(t *testing.T, label string, from map[string]string) string {
	t.Helper()
	path := filepath.Join(bigDir(t), "stick.img")
	writeStick(t, path, label, from)
	return path
}

func writeStick(t *testing.T, path, label string, from map[string]string) {
	t.Helper()
	size := int64(64 << 20)
	var files []fat.File
	for name, path := range from {
		f, err := os.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		st, err := f.Stat()
		if err != nil {
			t.Fatal(err)
		}
		size += (st.Size() + card.Align) / card.Align * card.Align
		files = append(files, fat.File{Path: name, Size: st.Size(), Content: f})
	}
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(out.Truncate(size), fat.BuildFiles(out, fat.Options{Size: size, Label: label}, files), out.Close()); err != nil {
		t.Fatal(err)
	}
}

// withDisk plugs a disk in.
func withDisk(path string) func(*pi.Config) {
	return func(c *pi.Config) { c.Disks = append(c.Disks, path) }
}

// stickMount is where a Pi has the stick after mountStick.
const stickMount = "/run/stick"

// mountStick mounts the second disk in the Pi.
func mountStick(t *testing.T, m *pi.Machine) {
	t.Helper()
	output(t, m, "mkdir", "-p", stickMount)
	output(t, m, "mount", "-o", "ro", "-t", "vfat", "/dev/vdb", stickMount)
}

// portcullis runs the Pi's own program and returns what it said and its exit code.
func portcullis(t *testing.T, m *pi.Machine, args ...string) channel.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	r, err := m.Exec(ctx, append([]string{"portcullis"}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// slots is what the Pi says of its slots.
func slots(t *testing.T, m *pi.Machine) update.Status {
	t.Helper()
	var s update.Status
	if err := json.Unmarshal([]byte(output(t, m, "portcullis", "update", "status", "--json")), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// install updates the Pi from a file that it can read and restarts it.
func install(t *testing.T, m *pi.Machine, file string) {
	t.Helper()
	if r := portcullis(t, m, "update", file, "--no-reboot", "--json"); r.Exit != 0 {
		t.Fatalf("update: %s %s", r.Stderr, r.Error)
	} else {
		t.Logf("update: %s", r.Stdout)
	}
	restart(t, m)
}

func restart(t *testing.T, m *pi.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	if err := m.Reboot(ctx); err != nil {
		t.Fatal(err)
	}
}

// confDevice is the configuration partition of a card in a file.
type confDevice struct {
	*io.SectionReader
	f *os.File
}

func (d confDevice) WriteAt(b []byte, at int64) (int, error) {
	_, base, _ := d.Outer()
	return d.f.WriteAt(b, base+at)
}

// confOf opens the configuration partition of a card; the Pi must be off.
func confOf(t *testing.T, c pi.Card) *card.Conf {
	t.Helper()
	f, err := os.OpenFile(c.Image, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	p, err := pi.Partition(f, card.PartConf)
	if err != nil {
		t.Fatal(err)
	}
	conf, err := card.OpenConf(confDevice{p, f}, p.Size())
	if err != nil {
		t.Fatal(err)
	}
	return conf
}

// says fails unless a command was refused with reason.
func says(t *testing.T, r channel.Response, reason string) {
	t.Helper()
	if r.Exit != 1 || !strings.Contains(string(r.Stderr), reason+": ") {
		t.Errorf("exit %d, %q; want 1 and %s", r.Exit, r.Stderr, reason)
	}
}
