package piscenario

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/lab/pi"
)

// builder is shared by all tests: an image is built once.
var builder = func() *pi.Builder {
	root, err := filepath.Abs("../..")
	if err != nil {
		panic(err)
	}
	return &pi.Builder{Repository: root, Say: func(what string) {
		if testing.Verbose() {
			os.Stderr.WriteString("  build: " + what + "\n")
		}
	}}
}()

// bootLimit bounds every wait of a test for one boot, on a busy machine.
const bootLimit = 5 * time.Minute

// image builds a variant of the Pi's image.
func image(t *testing.T, v pi.Variant) *pi.Image {
	t.Helper()
	img, err := builder.Image(t.Context(), v)
	if err != nil {
		t.Fatal(err)
	}
	return img
}

// seed has settings with which enrolment needs nobody at the console and all
// services start.
func seed(t *testing.T) string {
	t.Helper()
	s, err := builder.Seed(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// fresh is a card as flashed with settings, and a chip that knows nothing yet.
func fresh(t *testing.T, v pi.Variant) pi.Card {
	t.Helper()
	c, err := pi.NewCard(image(t, v).Card, bigDir(t), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Seed(seed(t)); err != nil {
		t.Fatal(err)
	}
	return c
}

// provisioned is the development image after its first boot. The card is shared:
// boot a copy of it (cardOf).
func provisioned(t *testing.T) *pi.Provisioned { return provisionedBy(t, pi.Direct) }

// provisionedBy is the same after a first boot by another firmware.
func provisionedBy(t *testing.T, firmware pi.Firmware) *pi.Provisioned {
	t.Helper()
	p, err := builder.Provisioned(t.Context(), image(t, pi.Variant{}), firmware, seed(t))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// cardOf is a copy of a card and of its chip for this test alone.
func cardOf(t *testing.T, c pi.Card) pi.Card {
	t.Helper()
	own, err := c.Copy(bigDir(t))
	if err != nil {
		t.Fatal(err)
	}
	return own
}

// bigDir is a directory on the disk that holds the checkout: a card has hundreds
// of megabytes and the temporary directory may be in memory.
func bigDir(t *testing.T) string {
	t.Helper()
	if err := os.MkdirAll(bigDirs(), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp(bigDirs(), ".test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func bigDirs() string { return filepath.Join(builder.Repository, "build", "pi") }

// boot powers a card on; at the end of the test the machine is killed, and where
// the test has failed the end of its console is shown.
func boot(t *testing.T, c pi.Card, change ...func(*pi.Config)) *pi.Machine {
	t.Helper()
	dir, err := os.MkdirTemp("", "pi-")
	if err != nil {
		t.Fatal(err)
	}
	cfg := pi.Config{Name: strings.ToLower(t.Name()), Dir: dir, Card: c.Image, TPM: c.TPM}
	for _, f := range change {
		f(&cfg)
	}
	m, err := pi.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.Kill()
		text := m.Console().Text()
		if t.Failed() {
			t.Logf("console:\n%s", text[max(0, len(text)-6000):])
		}
		os.RemoveAll(dir)
	})
	return m
}

// withAAVMF boots through the firmware that measures.
func withAAVMF(c *pi.Config) { c.Firmware = pi.AAVMF }

// expect waits for a pattern on the console, after what was matched before.
func expect(t *testing.T, m *pi.Machine, pattern string) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	got, err := m.Expect(ctx, pattern)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// running waits until everything in the Pi has started.
func running(t *testing.T, m *pi.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	if err := m.Running(ctx); err != nil {
		t.Fatal(err)
	}
}

// output runs a command in the Pi and returns what it wrote.
func output(t *testing.T, m *pi.Machine, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	out, err := m.Output(ctx, argv...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// powerOff shuts the Pi down in order.
func powerOff(t *testing.T, m *pi.Machine) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), bootLimit)
	defer cancel()
	if err := m.PowerOff(ctx); err != nil {
		t.Fatal(err)
	}
}
