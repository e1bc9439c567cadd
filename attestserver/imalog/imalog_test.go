package imalog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
)

// entry encodes one as the kernel does.
func entry(path string, violated bool) []byte {
	var data []byte
	for _, f := range [][]byte{append([]byte("sha256:\x00"), bytes.Repeat([]byte{7}, 32)...), append([]byte(path), 0)} {
		data = binary.LittleEndian.AppendUint32(data, uint32(len(f)))
		data = append(data, f...)
	}
	b := binary.LittleEndian.AppendUint32(nil, register)
	sum := [20]byte{1, 2, 3}
	if violated {
		sum = [20]byte{}
	}
	b = append(b, sum[:]...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len("ima-ng")))
	b = append(b, "ima-ng"...)
	b = binary.LittleEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

func list(n int) (all []byte) {
	for i := range n {
		all = append(all, entry(fmt.Sprintf("/usr/bin/program-%d", i), i%7 == 3)...)
	}
	return all
}

func value(t testing.TB, list []byte) [32]byte {
	t.Helper()
	n, v, _, err := Replay([32]byte{}, list, [32]byte{1}, nil)
	if err != nil || n != len(list) {
		t.Fatalf("%d of %d bytes, %v", n, len(list), err)
	}
	return v
}

// The list is read after the quote: a beginning of it leads to the register. The
// next time only what is new is needed.
func TestBeginningsAreAcceptedAndGoOn(t *testing.T) {
	first, second, rest := list(20), entry("/a", false), entry("/b", false)
	at := value(t, first)
	n, _, ok, err := Replay([32]byte{}, append(append(bytes.Clone(first), second...), rest...), at, nil)
	if err != nil || !ok || n != len(first) {
		t.Fatalf("%d of %d bytes, %v", n, len(first), err)
	}
	next := value(t, append(bytes.Clone(first), second...))
	n, _, ok, err = Replay(at, append(bytes.Clone(second), rest...), next, nil)
	if err != nil || !ok || n != len(second) {
		t.Fatalf("%d of %d bytes, %v", n, len(second), err)
	}
	if n, _, ok, err := Replay(next, nil, next, nil); n != 0 || !ok || err != nil {
		t.Fatalf("nothing new: %d, %v", n, err)
	}
	// A piece that ends within an entry is followed to the last whole one.
	n, v, ok, err := Replay([32]byte{}, append(bytes.Clone(first), second[:len(second)-1]...), next, nil)
	if err != nil || ok || n != len(first) || v != at {
		t.Fatalf("cut off: %d of %d bytes, %v", n, len(first), err)
	}
}

func TestAttackForgedListIsRefused(t *testing.T) {
	honest := list(20)
	want := value(t, honest)
	for name, forged := range map[string][]byte{
		"entry left out":       append(bytes.Clone(honest[:len(entry("/usr/bin/program-0", false))]), honest[2*len(entry("/usr/bin/program-0", false)):]...),
		"entry put in":         append(entry("/evil", false), honest...),
		"last entries cut off": honest[:len(honest)-len(entry("/usr/bin/program-19", false))],
		"path changed":         bytes.Replace(honest, []byte("program-5"), []byte("program-6"), 1),
		"violation hidden":     append(list(3), append(entry("/usr/bin/program-3", false), honest[len(list(4)):]...)...),
	} {
		if _, _, ok, err := Replay([32]byte{}, forged, want, nil); ok || err != nil {
			t.Errorf("%s: %v, %v", name, ok, err)
		}
	}
	for i := range honest[:len(list(2))] {
		forged := bytes.Clone(honest)
		forged[i] ^= 1
		_, _, ok, err := Replay([32]byte{}, forged, want, nil)
		// The SHA-1 of the template is not what the SHA-256 bank was extended with.
		inSHA1 := (i >= 4 && i < 24) || (i-len(list(1)) >= 4 && i-len(list(1)) < 24)
		name := (i >= 28 && i < 34) || (i-len(list(1)) >= 28 && i-len(list(1)) < 34)
		if (ok && err == nil) != (inSHA1 || name) {
			t.Errorf("bit of byte %d changed: %v", i, err)
		}
	}
}

func TestMalformedLists(t *testing.T) {
	good := entry("/a", false)
	other := bytes.Clone(good)
	other[0] = 11
	huge := bytes.Clone(good)
	binary.LittleEndian.PutUint32(huge[34:], 1<<31)
	for name, b := range map[string][]byte{"empty": nil, "cut off": good[:len(good)-1], "head only": good[:28], "other register": other, "huge": huge} {
		if _, err := Next(b); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func FuzzReplay(f *testing.F) {
	f.Add(list(3))
	f.Add(entry("/a", true))
	f.Add([]byte{10, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		n, v, ok, err := Replay([32]byte{}, b, sha256.Sum256(b), nil)
		if ok || n > len(b) {
			t.Errorf("%d bytes lead to a value that nobody extended", n)
		}
		if err == nil {
			if again, _, ok, err := Replay([32]byte{}, b, v, nil); err != nil || !ok || again != n {
				t.Errorf("%d of %d bytes, %v", again, n, err)
			}
		}
	})
}

func BenchmarkReplay10000(b *testing.B) {
	all := list(10000)
	want := value(b, all)
	b.SetBytes(int64(len(all)))
	for b.Loop() {
		if _, _, ok, err := Replay([32]byte{}, all, want, nil); !ok || err != nil {
			b.Fatal(ok, err)
		}
	}
}
