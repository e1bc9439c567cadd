package piscenario

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/images/card"
	"portcullis/images/gpt"
	"portcullis/lab/channel"
	"portcullis/lab/pi"
)

// partition is where a partition lies on a card's file, in bytes.
func partition(t *testing.T, c pi.Card, number int) (offset, size int64) {
	t.Helper()
	f, err := os.Open(c.Image)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, _, err := gpt.Read(f, uint64(st.Size()/card.SectorSize))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range table.Partitions {
		if p.Number == number {
			return p.Offset(), p.Size()
		}
	}
	t.Fatalf("no partition %d", number)
	return 0, 0
}

// write changes a card that is not running.
func write(t *testing.T, c pi.Card, b []byte, off int64) {
	t.Helper()
	f, err := os.OpenFile(c.Image, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// section opens a partition of a card's file.
func section(t *testing.T, c pi.Card, number int) *io.SectionReader {
	t.Helper()
	f, err := os.Open(c.Image)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	offset, size := partition(t, c, number)
	return io.NewSectionReader(f, offset, size)
}

// otherChip is the same card in a Pi with another chip.
func otherChip(t *testing.T, c pi.Card) pi.Card {
	t.Helper()
	c = cardOf(t, c)
	if err := os.RemoveAll(c.TPM); err != nil {
		t.Fatal(err)
	}
	return c
}

// inDir remembers the machine's directory.
func inDir(dir *string) func(*pi.Config) { return func(c *pi.Config) { *dir = c.Dir } }

// command runs a program in the Pi with something to read.
func command(t *testing.T, dir string, stdin []byte, argv ...string) channel.Response {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	r, err := channel.Run(ctx, pi.ChannelSocket(dir), channel.Request{Argv: argv, Stdin: stdin, LimitMS: bootLimit.Milliseconds()})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// program builds a command of this repository for the Pi.
func program(t *testing.T, pkg string) []byte {
	t.Helper()
	out := filepath.Join(t.TempDir(), "program")
	cmd := exec.Command("go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, pkg)
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH=arm64", "CGO_ENABLED=0")
	if b, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, b)
	}
	b, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestAttackUnsealAfterTheBoot: root in the running Pi, with pi-init's own code and
// all that pi-init read, does not get the key out of the chip. The same after the
// registers were extended as a new boot would.
func TestAttackUnsealAfterTheBoot(t *testing.T) {
	t.Parallel()
	var dir string
	m, _, console := goesOn(t, inDir(&dir))
	said(t, console, `portcullis: stage=cap [^\n]*registers=11,15`, `portcullis: stage=switch-root`)
	const path = "/run/unsealer"
	if r := command(t, dir, program(t, "./unsealer"), "/bin/sh", "-c", "cat >"+path+" && chmod 700 "+path); r.Exit != 0 {
		t.Fatalf("%s%s", r.Stderr, r.Error)
	}
	nodes := strings.Fields(output(t, m, "/bin/sh", "-c", "blkid -t PARTLABEL="+card.LabelCrypt+" -o device; blkid -t PARTLABEL="+card.LabelBootA+" -o device"))
	if len(nodes) != 2 {
		t.Fatalf("partitions %q", nodes)
	}
	got := output(t, m, append([]string{path}, nodes...)...)
	if !strings.HasPrefix(got, "refused root-policy") {
		t.Errorf("%s", got)
	}
	t.Log(strings.TrimSpace(got))
	powerOff(t, m)
}

// TestPrimaryHeaderDestroyed: the second copy opens the volume, and the first is
// made anew from it.
func TestPrimaryHeaderDestroyed(t *testing.T) {
	t.Parallel()
	p := provisioned(t)
	c := cardOf(t, p.Card)
	at, _ := partition(t, c, card.PartCrypt)
	write(t, c, bytes.Repeat([]byte{0xa5}, headerSize), at)
	m := boot(t, c)
	expect(t, m, `portcullis: stage=header [^\n]*repaired=yes`)
	expect(t, m, `portcullis: stage=unlock [^\n]*by=tpm2`)
	expect(t, m, `portcullis: stage=switch-root`)
	m.Kill()
	if h := health(t, c); !h.Good() {
		t.Errorf("the header is %+v after the repair", h)
	}
}
