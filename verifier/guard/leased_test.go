package guard

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/verifier/verity"
)

// TestAttack_LeaseAndThenAPipe: who has a lease on a file of a layer makes the comparison wait,
// and puts a pipe, another file or a link in its place meanwhile. Nobody waits for a pipe's other end:
// every start would wait with it.
func TestAttack_LeaseAndThenAPipe(t *testing.T) {
	for name, change := range map[string]func(dir, path string) error{
		"a pipe": func(_, path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)) },
		"another file": func(dir, path string) error {
			return errors.Join(os.WriteFile(dir+"/new", []byte("one"), 0o644), os.Rename(dir+"/new", path))
		},
		"a link": func(dir, path string) error {
			return errors.Join(os.Rename(path, dir+"/old"), os.Symlink(dir+"/old", path))
		},
	} {
		dir, files := layerOf(t, []byte("one"))
		c := &comparison{files: verity.Kernel{}, form: formVerity}
		if err := errors.Join(c.onDisk(dir), c.sameFiles(t.Context(), dir, listOf(files))); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "f0")
		if err := change(dir, path); err != nil {
			t.Fatal(err)
		}
		done := make(chan error, 1)
		go func() {
			f, err := c.openLeased(c.todo[0])
			f.Close() // of nil it is an error, which is no news
			done <- err
		}()
		select {
		case err := <-done:
			if r, _ := reasonOf(unreadable(c.todo[0].name, err)); err == nil || r != ReasonImageStore {
				t.Errorf("%s: %v", name, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("%s: it is waited for", name)
		}
	}
}

// A lease that is given back is no more than a delay.
func TestLeaseThatIsGivenBack(t *testing.T) {
	dir, files := layerOf(t, []byte("one"))
	c := &comparison{files: verity.Kernel{}, form: formVerity}
	if err := errors.Join(c.onDisk(dir), c.sameFiles(t.Context(), dir, listOf(files))); err != nil {
		t.Fatal(err)
	}
	opened, let := held(t, filepath.Join(dir, "f0"))
	done := make(chan error, 1)
	go func() { done <- c.contents(t.Context()) }()
	<-opened
	let()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
