package piscenario

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"testing"

	"portcullis/images/bundle"
	"portcullis/lab/pi"
)

// runs is the second boot of a provisioned card, suspended where everything has started.
// Tests that begin there go on from copies of it, and only the first of them boots.
var runs struct {
	sync.Mutex
	dir  string // outlives the tests
	made *asleep
}

func TestMain(m *testing.M) {
	code := m.Run()
	if runs.dir != "" {
		os.RemoveAll(runs.dir)
	}
	os.Exit(code)
}

// Updates on the stick that the running Pi has mounted.
const (
	newOnStick    = stickMount + "/new" + bundle.Extension    // release 2
	oldOnStick    = stickMount + "/old" + bundle.Extension    // release 1, which is in use
	brokenOnStick = stickMount + "/broken" + bundle.Extension // release 2, without a firewall
)

// runningPi makes it where it is not made yet.
func runningPi(t *testing.T) asleep {
	t.Helper()
	runs.Lock()
	defer runs.Unlock()
	if runs.made != nil {
		return *runs.made
	}
	p := provisioned(t)
	recipe, err := filepath.Abs("testdata/broken.yaml")
	if err != nil {
		t.Fatal(err)
	}
	if runs.dir == "" {
		if runs.dir, err = os.MkdirTemp(bigDirs(), ".test-"); err != nil {
			t.Fatal(err)
		}
	}
	stick := filepath.Join(runs.dir, "stick.img")
	writeStick(t, stick, "UPDATES", map[string]string{
		filepath.Base(newOnStick): image(t, pi.Variant{Sequence: 2}).Bundle, filepath.Base(oldOnStick): p.Image.Bundle,
		filepath.Base(brokenOnStick): image(t, pi.Variant{Sequence: 2, Recipe: recipe}).Bundle,
	})
	c := shared(t, p.Card, runs.dir)
	m := boot(t, c, withDisk(stick), withOneCPU)
	running(t, m)
	mountStick(t, m)
	a := suspend(t, m, c, withDisk(stick), withOneCPU)
	runs.made = &a
	return a
}

// goesOn is a copy of the running Pi for this test alone, its card, and what it had
// written since its power came on.
func goesOn(t *testing.T, change ...func(*pi.Config)) (m *pi.Machine, c pi.Card, console string) {
	t.Helper()
	a := runningPi(t)
	c = cardOf(t, a.card)
	return boot(t, c, slices.Concat(a.change, change, []func(*pi.Config){func(cfg *pi.Config) { cfg.Resume = a.state }})...), c, a.console
}

// said fails unless the console shows these patterns, one after the other.
func said(t *testing.T, console string, patterns ...string) {
	t.Helper()
	for _, p := range patterns {
		at := regexp.MustCompile(p).FindStringIndex(console)
		if at == nil {
			t.Fatalf("%q is not on the console, or not in its place", p)
		}
		console = console[at[1]:]
	}
}
