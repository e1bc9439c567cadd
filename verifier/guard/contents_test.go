package guard

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"portcullis/verifier/image"
	"portcullis/verifier/verity"
)

// sealer is a kernel with fs-verity as far as its answers go: a file's inode has a
// digest once it was enabled, and a file that somebody has open for writing cannot be.
type sealer struct {
	mu       sync.Mutex
	sums     map[uint64]verity.Sum // by inode
	refusal  error                 // of Enable
	measured int
	enabled  int             // calls of Enable
	times    map[uint64]int  // the same, by inode
	before   func()          // by Enable, before there can be no writer any more
	during   func(*os.File)  // by Enable, before it reads the file
	busy     map[uint64]bool // inodes that are being enabled
}

func (s *sealer) inode(f *os.File) (uint64, int64, error) {
	var st unix.Stat_t
	err := unix.Fstat(int(f.Fd()), &st)
	return st.Ino, st.Size, err
}

func (s *sealer) Measure(f *os.File) (verity.Sum, error) {
	ino, _, err := s.inode(f)
	if err != nil {
		return verity.Sum{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.measured++
	if sum, ok := s.sums[ino]; ok {
		return sum, nil
	}
	return verity.Sum{}, verity.ErrNone
}

func (s *sealer) Enable(f *os.File) error {
	if s.refusal != nil {
		return s.refusal
	}
	if s.before != nil {
		s.before()
	}
	// A lease for reading is not given where there is a writer (fcntl(2)).
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_RDLCK); err != nil {
		return unix.ETXTBSY
	}
	defer unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_UNLCK)
	ino, size, err := s.inode(f)
	if err != nil {
		return err
	}
	if err := s.begin(ino); err != nil {
		return err
	}
	defer func() { s.mu.Lock(); delete(s.busy, ino); s.mu.Unlock() }()
	if s.during != nil {
		s.during(f)
	}
	sum, err := verity.Of(f, size, 1)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.sums[ino] = sum
	return nil
}

// begin lets one at a time enable a file, as the kernel does.
func (s *sealer) begin(ino uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy == nil {
		s.busy, s.times = map[uint64]bool{}, map[uint64]int{}
	}
	s.times[ino]++
	if s.enabled++; s.busy[ino] {
		return unix.EBUSY
	}
	s.busy[ino] = true
	return nil
}

// layerOf is a directory with files of these contents, and its list.
func layerOf(t *testing.T, contents ...[]byte) (string, []image.File) {
	t.Helper()
	dir := t.TempDir()
	var files []image.File
	for i, b := range contents {
		f := image.File{Path: fmt.Sprintf("f%d", i), Kind: image.KindFile, Mode: 0o644, UID: os.Getuid(), GID: os.Getgid(), Size: int64(len(b)), Sum: sumOf(b)}
		if err := os.WriteFile(filepath.Join(dir, f.Path), b, 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return dir, files
}

func compareAll(t *testing.T, dir string, files []image.File, s verity.Files, form string, read bool) (layersHeld, error) {
	t.Helper()
	c := &comparison{files: s, turns: new(turns), form: form, read: read}
	err := errors.Join(c.onDisk(dir), c.sameFiles(t.Context(), dir, listOf(files)))
	if err == nil {
		err = c.contents(t.Context())
	}
	return c.said, err
}

// The first look gives each file verity; the next ones ask for digests and read nothing.
func TestFilesAreSealedOnce(t *testing.T) {
	large := make([]byte, wideFile+7)
	rand.NewChaCha8([32]byte{1}).Read(large) // never fails
	dir, files := layerOf(t, []byte("one"), nil, large)
	s := &sealer{sums: map[uint64]verity.Sum{}}
	for range 2 {
		said, err := compareAll(t, dir, files, s, formVerity, false)
		if err != nil || said.String() != LayersSealed || said.sealed != 3 || len(s.sums) != 3 {
			t.Fatalf("%+v, %d files with verity: %v", said, len(s.sums), err)
		}
	}
	// What the kernel would never let through shows that nobody reads it again.
	if err := os.WriteFile(filepath.Join(dir, "f0"), []byte("two"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := compareAll(t, dir, files, s, formVerity, false); err != nil {
		t.Errorf("a file with verity was read: %v", err)
	}
}

// TestAttack_FileExchangedForAnother: verity is of an inode. One in its place that has none, or that
// of another file, is found, and so is one that was made before there was verity.
func TestAttack_FileExchangedForAnother(t *testing.T) {
	for name, change := range map[string]func(s *sealer, dir, path string) error{
		"another file without verity": func(_ *sealer, dir, path string) error {
			return errors.Join(os.WriteFile(dir+"/new", []byte("two"), 0o644), os.Rename(dir+"/new", path))
		},
		"another file with verity": func(s *sealer, dir, path string) error {
			err := errors.Join(os.WriteFile(dir+"/new", []byte("two"), 0o644), os.Rename(dir+"/new", path))
			f, oerr := os.Open(path)
			if err = errors.Join(err, oerr); err != nil {
				return err
			}
			defer f.Close()
			return s.Enable(f)
		},
		"a digest of another file": func(s *sealer, _, path string) error {
			var st unix.Stat_t
			err := unix.Stat(path, &st)
			s.sums[st.Ino] = sumOf([]byte("two"))
			return err
		},
		"a pipe":     func(_ *sealer, _, path string) error { return errors.Join(os.Remove(path), unix.Mkfifo(path, 0o644)) },
		"taken away": func(_ *sealer, _, path string) error { return os.Remove(path) },
		"one more":   func(_ *sealer, dir, _ string) error { return os.WriteFile(dir+"/more", nil, 0o644) },
		"a mode":     func(_ *sealer, _, path string) error { return os.Chmod(path, 0o755) },
		"an attribute": func(_ *sealer, _, path string) error {
			return unix.Lsetxattr(path, capabilityAttr, capabilityOf(2, 0), 0)
		},
		"another file system over it": func(_ *sealer, _, path string) error {
			return unix.Mount("tmpfs", filepath.Dir(path), "tmpfs", 0, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir, files := layerOf(t, []byte("one"))
			s := &sealer{sums: map[uint64]verity.Sum{}}
			if _, err := compareAll(t, dir, files, s, formVerity, false); err != nil {
				t.Fatal(err)
			}
			if err := change(s, dir, filepath.Join(dir, "f0")); err != nil {
				t.Fatal(err)
			}
			defer unix.Unmount(dir, unix.MNT_DETACH) // where one was made
			_, err := compareAll(t, dir, files, s, formVerity, false)
			if own, ok := errors.AsType[*Error](err); !ok || own.Reason != ReasonImageStore {
				t.Errorf("not refused for the image's store: %v", err)
			}
		})
	}
}

// Where verity cannot be had all is read and hashed, each time, and the status says why.
func TestFilesWithoutVerityAreHashed(t *testing.T) {
	dir, files := layerOf(t, []byte("one"), bytes.Repeat([]byte("x"), 10000))
	open, err := os.OpenFile(filepath.Join(dir, "f1"), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	for name, c := range map[string]struct {
		s      verity.Files
		sealed int
		why    string
	}{
		"the file system has none": {&sealer{refusal: verity.ErrUnsupported}, 0, "not of this kernel"},
		"this process may not":     {&sealer{refusal: unix.EPERM}, 0, "not permitted"},
		"there is a writer":        {&sealer{sums: map[uint64]verity.Sum{}}, 1, "busy"},
	} {
		said, err := compareAll(t, dir, files, c.s, formVerity, false)
		if err != nil || said.String() != LayersHashed || said.sealed != c.sealed || !strings.Contains(said.why.Error(), c.why) {
			t.Errorf("%s: %+v, %v", name, said, err)
		}
		if err := os.WriteFile(filepath.Join(dir, "f1"), bytes.Repeat([]byte("y"), 10000), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := compareAll(t, dir, files, c.s, formVerity, false); err == nil {
			t.Errorf("%s: a change was not found", name)
		}
		if err := os.WriteFile(filepath.Join(dir, "f1"), bytes.Repeat([]byte("x"), 10000), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// A list that an older verifierd made has plain hashes: they hold as before.
func TestListOfAnOlderForm(t *testing.T) {
	dir, files := layerOf(t, []byte("one"))
	files[0].Sum = sha256.Sum256([]byte("one"))
	s := &sealer{sums: map[uint64]verity.Sum{}}
	said, err := compareAll(t, dir, files, s, formSHA256, false)
	if err != nil || said.String() != LayersHashed || s.measured != 0 {
		t.Errorf("%+v: %v", said, err)
	}
	if _, err := compareAll(t, dir, files, s, formVerity, false); err == nil {
		t.Error("a hash was taken for a digest of verity")
	}
	if err := os.WriteFile(filepath.Join(dir, "f0"), []byte("two"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := compareAll(t, dir, files, s, formSHA256, false); err == nil {
		t.Error("a changed file was not found")
	}
}

// What the kernel finds wrong with a file when it is read is a refusal: a comparison that
// reads ends a container by it.
func TestFileThatCannotBeRead(t *testing.T) {
	if r, _ := reasonOf(unreadable("f", &os.PathError{Op: "read", Err: unix.EIO})); r != ReasonImageStore {
		t.Errorf("EIO is %q", r)
	}
	if r, _ := reasonOf(unreadable("f", &os.PathError{Op: "open", Err: unix.EMFILE})); r == ReasonImageStore {
		t.Error("a lack of descriptors is the image's fault")
	}
}
