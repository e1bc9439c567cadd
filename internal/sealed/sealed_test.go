package sealed

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func accept(io.Reader) error { return nil }

func TestNobodyCanChangeIt(t *testing.T) {
	want := bytes.Repeat([]byte("portcullis"), 1000)
	f, err := Copy("test", bytes.NewReader(want), int64(len(want)), accept)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd := int(f.file.Fd())
	if _, err := unix.Pwrite(fd, []byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write: %v", err)
	}
	if err := unix.Ftruncate(fd, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("shrink: %v", err)
	}
	if err := unix.Ftruncate(fd, 1<<20); !errors.Is(err, unix.EPERM) {
		t.Errorf("grow: %v", err)
	}
	if _, err := unix.Mmap(fd, 0, 4096, unix.PROT_WRITE, unix.MAP_SHARED); !errors.Is(err, unix.EPERM) {
		t.Errorf("map for writing: %v", err)
	}
	if _, err := unix.FcntlInt(f.file.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_FUTURE_WRITE); !errors.Is(err, unix.EPERM) {
		t.Errorf("another seal: %v", err)
	}
	got, err := io.ReadAll(io.NewSectionReader(f, 0, f.Size()))
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
}

func TestCheckSeesWhatIsSealed(t *testing.T) {
	var seen string
	f, err := Copy("test", strings.NewReader("what is copied"), 14, func(r io.Reader) error {
		b, err := io.ReadAll(r)
		seen = string(b)
		return err
	})
	if err != nil || seen != "what is copied" {
		t.Fatal(seen, err)
	}
	f.Close()
	mine := errors.New("not this one")
	if _, err := Copy("test", strings.NewReader("x"), 1, func(io.Reader) error { return mine }); !errors.Is(err, mine) {
		t.Error(err)
	}
}

func TestSizeMustBeThere(t *testing.T) {
	if _, err := Copy("test", strings.NewReader("short"), 6, accept); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Error(err)
	}
	f, err := Copy("test", strings.NewReader("longer"), 4, accept)
	if err != nil || f.Size() != 4 {
		t.Fatal(err)
	}
	if n, err := f.ReadAt(make([]byte, 6), 0); n != 4 || err != io.EOF {
		t.Errorf("%d, %v", n, err)
	}
	f.Close()
}

func TestReadersMayBeOverrunByClose(t *testing.T) {
	f, err := Copy("test", bytes.NewReader(make([]byte, 1<<20)), 1<<20, accept)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			b := make([]byte, 4096)
			for {
				if _, err := f.ReadAt(b, 0); err != nil {
					if !errors.Is(err, os.ErrClosed) {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	f.Close()
	wg.Wait()
}

// The kernel may hold a page for a moment, as a mapping does here; a mapping that
// stays is a fault of the caller.
func TestSealWaitsForPagesInUse(t *testing.T) {
	for name, after := range map[string]time.Duration{"let go": 4 * sealPause, "kept": time.Hour} {
		fd, err := unix.MemfdCreate("busy", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fd), "busy")
		defer f.Close()
		if err := f.Truncate(4096); err != nil {
			t.Fatal(err)
		}
		b, err := unix.Mmap(fd, 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		if err != nil {
			t.Fatal(err)
		}
		held := time.AfterFunc(after, func() { unix.Munmap(b) })
		err = Seal(f)
		if stays := after == time.Hour; stays != errors.Is(err, unix.EBUSY) || !stays && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if held.Stop() {
			unix.Munmap(b)
		}
	}
}
