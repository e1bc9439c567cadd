package translog

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

type keys struct {
	signer note.Signer
	public note.Verifier
}

func newKeys(t testing.TB, name string) keys {
	t.Helper()
	private, public, err := note.GenerateKey(rand.Reader, name)
	if err != nil {
		t.Fatal(err)
	}
	var k keys
	if k.signer, err = note.NewSigner(private); err != nil {
		t.Fatal(err)
	}
	if k.public, err = note.NewVerifier(public); err != nil {
		t.Fatal(err)
	}
	return k
}

func open(t testing.TB, dir string, k keys) *Log {
	t.Helper()
	l, err := Open(dir, k.signer, k.public)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func entry(i int) []byte { return fmt.Appendf(nil, "entry %d", i) }

func fill(t testing.TB, l *Log, from, to int) {
	t.Helper()
	for i := from; i < to; i++ {
		n, err := l.Append(entry(i))
		if err != nil {
			t.Fatal(err)
		}
		if n != int64(i) {
			t.Fatalf("entry %d got the index %d", i, n)
		}
	}
}

func reader(t testing.TB, l *Log, k keys) *Reader {
	t.Helper()
	r, err := NewReader(l.Reader(), k.public)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// reference computes a root the slow way, with the library alone.
func reference(t testing.TB, n int) tlog.Hash {
	t.Helper()
	var stored []tlog.Hash
	read := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		all := make([]tlog.Hash, len(at))
		for i, x := range at {
			all[i] = stored[x]
		}
		return all, nil
	})
	for i := range n {
		h, err := tlog.StoredHashes(int64(i), entry(i), read)
		if err != nil {
			t.Fatal(err)
		}
		stored = append(stored, h...)
	}
	root, err := tlog.TreeHash(int64(n), read)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func remove(t *testing.T, dir, name string) {
	if err := os.Remove(filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
}

func rename(t *testing.T, dir, from, to string) {
	if err := os.Rename(filepath.Join(dir, from), filepath.Join(dir, to)); err != nil {
		t.Fatal(err)
	}
}

func truncate(t *testing.T, dir, name string, size int64) {
	if err := os.Truncate(filepath.Join(dir, name), size); err != nil {
		t.Fatal(err)
	}
}

func flip(t *testing.T, dir, name string) {
	path := filepath.Join(dir, name)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)-1] ^= 1
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
