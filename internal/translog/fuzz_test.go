package translog

import (
	"bytes"
	"io/fs"
	"maps"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"golang.org/x/mod/sumdb/tlog"
)

func FuzzParseCheckpoint(f *testing.F) {
	k := newKeys(f, "test.log")
	msg, err := sign("test.log", 7, tlog.Hash{1}, k.signer)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(msg)
	f.Add([]byte("test.log\n7\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseCheckpoint(b, k.public)
		if (c == nil) == (err == nil) {
			t.Fatal("neither a value nor an error")
		}
		if err != nil && Reason(err) != ReasonCheckpoint {
			t.Fatalf("untyped: %v", err)
		}
	})
}

func FuzzParseProof(f *testing.F) {
	f.Add([]byte((&Proof{Index: 3, Hashes: []tlog.Hash{{1}, {2}}, Checkpoint: []byte("x\n")}).String()))
	f.Add([]byte(proofHead + "\nextra AA==\nindex 0\n\nx"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := ParseProof(b)
		if err != nil {
			if Reason(err) != ReasonProof {
				t.Fatalf("untyped: %v", err)
			}
			return
		}
		again, err := ParseProof([]byte(p.String()))
		if err != nil || again.String() != p.String() {
			t.Fatalf("does not survive: %v", err)
		}
	})
}

func FuzzParseBundle(f *testing.F) {
	f.Add(encodeBundle([][]byte{[]byte("a"), []byte("bc")}))
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		entries, err := ParseBundle(b)
		if err == nil && string(encodeBundle(entries)) != string(b) {
			t.Fatal("does not survive")
		}
	})
}

// FuzzTiles replaces one file of hashes or entries of a signed log: whatever is in it, an
// entry that is read is the one that was signed, or the error has its reason.
func FuzzTiles(f *testing.F) {
	const entries = 300
	k := newKeys(f, "test.log")
	l := open(f, f.TempDir(), k)
	fill(f, l, 0, entries)
	if err := l.Publish(); err != nil {
		f.Fatal(err)
	}
	names := []string{
		tilePath(0, 0, tileWidth), tilePath(0, 1, entries-tileWidth), tilePath(1, 0, 1), // hashes
		bundlePath(0, tileWidth), bundlePath(1, entries-tileWidth), "tile/0/001", "tile/entries/001", // entries, and full ones in place of partial ones
	}
	files := fstest.MapFS{}
	read := func(name string) []byte {
		b, err := fs.ReadFile(l.Reader(), name)
		if err != nil {
			f.Fatal(err)
		}
		return b
	}
	files["checkpoint"] = &fstest.MapFile{Data: read("checkpoint")}
	for i, name := range names[:5] {
		b := read(name)
		files[name] = &fstest.MapFile{Data: b}
		f.Add(i, int64(0), b)
		f.Add(i, int64(entries-1), append(bytes.Clone(b), b...))
		f.Add(i, int64(tileWidth), b[:len(b)/3])
		other := bytes.Clone(b)
		other[len(b)-1] ^= 1
		f.Add(i, int64(tileWidth-1), other)
	}
	f.Fuzz(func(t *testing.T, file int, index int64, b []byte) {
		changed := maps.Clone(files)
		name := names[uint(file)%uint(len(names))]
		if strings.HasSuffix(name, "/001") {
			delete(changed, name+".p/"+strconv.Itoa(entries-tileWidth))
		}
		changed[name] = &fstest.MapFile{Data: b}
		r, err := NewReader(changed, k.public)
		if err != nil {
			t.Fatal(err)
		}
		index = int64(uint64(index) % entries)
		switch e, err := r.Entry(index); {
		case err == nil && !bytes.Equal(e, entry(int(index))):
			t.Fatalf("%s: entry %d is %q", name, index, e)
		case err != nil && Reason(err) == "":
			t.Fatalf("%s: untyped: %v", name, err)
		}
		if err := r.Audit(nil); err != nil && Reason(err) == "" {
			t.Fatalf("%s: the audit: untyped: %v", name, err)
		}
	})
}
