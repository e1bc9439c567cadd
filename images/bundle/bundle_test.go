package bundle_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"portcullis/images/bundle"
	"portcullis/images/bundle/bundletest"
	"portcullis/images/card"
	"portcullis/images/manifest"
)

func reason(t testing.TB, err error) string {
	t.Helper()
	var e *bundle.Error
	if !errors.As(err, &e) {
		t.Fatalf("no typed refusal: %v", err)
	}
	return e.Reason
}

// drain reads a bundle to its end.
func drain(b []byte, trust manifest.Trust) (*bundle.Reader, error) {
	r, err := bundle.Open(bytes.NewReader(b), trust)
	if err != nil {
		return nil, err
	}
	for _, name := range []string{bundle.Boot, bundle.Root} {
		if err := r.Copy(name, func(int64, []byte) error { return nil }); err != nil {
			return r, errors.Join(err, r.Close())
		}
	}
	return r, r.Close()
}

func TestBundleRoundTrip(t *testing.T) {
	k := bundletest.NewKey(t)
	b := k.Bundle(t, 7, nil)
	if again := k.Bundle(t, 7, nil); !bytes.Equal(again, b) {
		t.Error("the same inputs gave other bytes")
	}
	r, err := bundle.Open(bytes.NewReader(b), k.Trust)
	if err != nil {
		t.Fatal(err)
	}
	if r.Manifest.Sequence != 7 || r.Manifest.Release() != bundletest.Release(7) {
		t.Errorf("%+v", r.Manifest)
	}
	for _, c := range []struct {
		name string
		want io.ReaderAt
		size int64
	}{{bundle.Boot, bundletest.BootImage(7), card.BootSize}, {bundle.Root, bytes.NewReader(bundletest.RootImage(7)), int64(len(bundletest.RootImage(7)))}} {
		var at int64
		want := make([]byte, manifest.ChunkSize)
		if err := r.Copy(c.name, func(offset int64, piece []byte) error {
			if _, err := c.want.ReadAt(want[:len(piece)], offset); err != nil && !errors.Is(err, io.EOF) {
				return err
			}
			if offset != at || !bytes.Equal(want[:len(piece)], piece) {
				t.Errorf("%s: other bytes at %d", c.name, offset)
			}
			at += int64(len(piece))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if at != c.size {
			t.Errorf("%s: %d bytes", c.name, at)
		}
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

func TestForgedBundlesAreRefused(t *testing.T) {
	k, other := bundletest.NewKey(t), bundletest.NewKey(t)
	good := k.Bundle(t, 7, nil)
	both := manifest.Trust{Threshold: 2, ReleaseKeys: append(append([]ed25519.PublicKey{}, k.Trust.ReleaseKeys...), other.Trust.ReleaseKeys...)}
	head := len("PCUPDATE v1\n")
	envelope := int(binary.LittleEndian.Uint32(good[head:]))
	change := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	for name, c := range map[string]struct {
		b     []byte
		trust manifest.Trust
		want  string
	}{
		"another key":           {good, other.Trust, bundle.ReasonSignature},
		"one of two signatures": {good, both, bundle.ReasonSignature},
		"nobody trusted":        {good, manifest.Trust{}, bundle.ReasonMalformed},
		"another kind of file":  {[]byte(strings.Repeat("squashfs", 10)), k.Trust, bundle.ReasonMalformed},
		"empty":                 {nil, k.Trust, bundle.ReasonTruncated},
		"manifest of 4 GiB": {change(func(b []byte) []byte { binary.LittleEndian.PutUint32(b[head:], 1<<32-1); return b }), k.Trust,
			bundle.ReasonSize},
		"cut in the manifest": {good[:head+4+envelope/2], k.Trust, bundle.ReasonTruncated},
		"cut in a piece":      {good[:len(good)-100], k.Trust, bundle.ReasonTruncated},
		"cut before a piece":  {good[:head+4+envelope], k.Trust, bundle.ReasonTruncated},
		"more behind":         {append(bytes.Clone(good), 0), k.Trust, bundle.ReasonMalformed},
		"piece of 4 GiB": {change(func(b []byte) []byte { binary.LittleEndian.PutUint32(b[head+4+envelope:], 1<<32-1); return b }), k.Trust,
			bundle.ReasonSize},
		"a byte of a piece":  {change(func(b []byte) []byte { b[len(b)-200] ^= 1; return b }), k.Trust, bundle.ReasonDiffers},
		"a bomb for a piece": {append(bytes.Clone(good[:head+4+envelope]), piece(t, make([]byte, 64<<20))...), k.Trust, bundle.ReasonDiffers},
		"a short piece":      {append(bytes.Clone(good[:head+4+envelope]), piece(t, make([]byte, 100))...), k.Trust, bundle.ReasonDiffers},
		"two frames":         {append(bytes.Clone(good[:head+4+envelope]), frames(t)...), k.Trust, bundle.ReasonDiffers},
	} {
		if _, err := drain(c.b, c.trust); err == nil || reason(t, err) != c.want {
			t.Errorf("%s: %v, want %s", name, err, c.want)
		}
	}
}

// A byte of the signed part that is not what was signed, wherever it stands.
func TestEveryByteBeforeThePiecesIsBound(t *testing.T) {
	k := bundletest.NewKey(t)
	good := k.Bundle(t, 7, nil)
	head := len("PCUPDATE v1\n")
	n := head + 4 + int(binary.LittleEndian.Uint32(good[head:]))
	for i := 0; i < n; i += 13 {
		b := bytes.Clone(good[:n])
		b[i] ^= 2
		if _, err := bundle.Open(bytes.NewReader(b), k.Trust); err == nil {
			t.Errorf("byte %d changed: accepted", i)
		}
	}
}

func piece(t testing.TB, plain []byte) []byte {
	t.Helper()
	e, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	b := e.EncodeAll(plain, make([]byte, 4))
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

// frames are two frames in one piece which together are too long.
func frames(t testing.TB) []byte {
	one := piece(t, make([]byte, manifest.ChunkSize))[4:]
	b := append(append(make([]byte, 4), one...), one...)
	binary.LittleEndian.PutUint32(b, uint32(len(b)-4))
	return b
}

func TestManifestsThatAreNotWritten(t *testing.T) {
	k := bundletest.NewKey(t)
	for name, change := range map[string]func(*bundle.Manifest){
		"model":               func(m *bundle.Manifest) { m.Model = "pi3" },
		"profile":             func(m *bundle.Manifest) { m.Profile = "debug" },
		"no sequence":         func(m *bundle.Manifest) { m.Sequence = 0 },
		"sequence too high":   func(m *bundle.Manifest) { m.Sequence = card.MaxSequence + 1 },
		"lab in release":      func(m *bundle.Manifest) { m.LabChannel, m.Profile = true, card.ProfileRelease },
		"kernel":              func(m *bundle.Manifest) { m.Kernel = "6.12 beta" },
		"boot digest":         func(m *bundle.Manifest) { m.BootDigest = "00" },
		"policy digest":       func(m *bundle.Manifest) { m.Policy = strings.Repeat("A", 64) },
		"root hash":           func(m *bundle.Manifest) { m.Verity.RootHash = strings.Repeat("1", 64) },
		"salt":                func(m *bundle.Manifest) { m.Verity.Salt = "00" },
		"tree outside":        func(m *bundle.Manifest) { m.Verity.HashStart = 1 << 40 },
		"cmdline, two lines":  func(m *bundle.Manifest) { m.Cmdline += "\ninit=/bin/sh" },
		"cmdline, release":    func(m *bundle.Manifest) { m.Cmdline = strings.Replace(m.Cmdline, "release=", "release=1", 1) },
		"cmdline, no release": func(m *bundle.Manifest) { m.Cmdline = strings.Replace(m.Cmdline, "portcullis.release=", "x=", 1) },
		"cmdline, more roots": func(m *bundle.Manifest) { m.Cmdline += " roothash=00" },
		"cmdline, firmware's": func(m *bundle.Manifest) { m.Cmdline = "cma=64M " + m.Cmdline },
		"cmdline, too long":   func(m *bundle.Manifest) { m.Cmdline += strings.Repeat(" x", 1100) },
	} {
		m := bundletest.Manifest(7)
		change(&m)
		if _, err := bundle.Write(io.Discard, m, bundletest.BootImage(7), bytes.NewReader(bundletest.RootImage(7)), k.Signer); err == nil {
			t.Errorf("%s: written", name)
		}
	}
	short := io.NewSectionReader(bundletest.BootImage(7), 0, card.BootSize-512)
	if _, err := bundle.Write(io.Discard, bundletest.Manifest(7), short, bytes.NewReader(bundletest.RootImage(7)), k.Signer); reason(t, err) != bundle.ReasonSize {
		t.Errorf("short boot partition: %v", err)
	}
	if _, err := bundle.Write(io.Discard, bundletest.Manifest(7), bundletest.BootImage(7), bytes.NewReader(bundletest.RootImage(7))); reason(t, err) != bundle.ReasonSignature {
		t.Errorf("no signer: %v", err)
	}
}

func FuzzOpen(f *testing.F) {
	k := bundletest.NewKey(f)
	good := k.Bundle(f, 7, nil)
	head := len("PCUPDATE v1\n")
	n := head + 4 + int(binary.LittleEndian.Uint32(good[head:]))
	f.Add(good[:n])
	f.Add(good[:n+500])
	f.Add(good[:head])
	other := make([]byte, 20)
	if _, err := rand.Read(other); err != nil {
		f.Fatal(err)
	}
	f.Add(other)
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := drain(b, k.Trust); r != nil && err == nil && !bytes.Equal(b, good) {
			t.Errorf("accepted %d bytes that were never written", len(b))
		}
	})
}
