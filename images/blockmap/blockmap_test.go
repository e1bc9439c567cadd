package blockmap

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	mrand "math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/images/manifest"
)

func reason(err error) string {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	var m *manifest.Error
	if errors.As(err, &m) {
		return m.Reason
	}
	return fmt.Sprint(err)
}

func noise(n int) []byte {
	b := make([]byte, n)
	_, _ = mrand.NewChaCha8([32]byte{7}).Read(b)
	return b
}

// example is an image with data at the beginning, in the middle across a MaxRange, and in its odd end.
func example() []byte {
	b := make([]byte, 21<<20+512)
	copy(b, noise(100))
	copy(b[3<<20+4096:], noise(6<<20))
	b[len(b)-1] = 1
	return b
}

func packed(t testing.TB, img []byte) (*Map, []byte) {
	t.Helper()
	var out bytes.Buffer
	m, err := Pack(&out, bytes.NewReader(img), int64(len(img)), "portcullis pi4 dev 1", nil)
	if err != nil {
		t.Fatal(err)
	}
	return m, out.Bytes()
}

func TestPackedImageIsReadByZstdAndMapped(t *testing.T) {
	img := example()
	m, file := packed(t, img)
	path := filepath.Join(t.TempDir(), "pi.img.zst")
	if err := os.WriteFile(path, file, 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("zstd", "-dc", path).Output()
	if errors.Is(err, exec.ErrNotFound) {
		t.Fatal("zstd is needed: apt-get install zstd")
	}
	if err != nil || !bytes.Equal(out, img) {
		t.Fatalf("zstd gives %d bytes of %d, %v", len(out), len(img), err)
	}
	if m.Compressed.Size != int64(len(file)) || m.Compressed.SHA256 != sha256.Sum256(file) {
		t.Errorf("%+v", m.Compressed)
	}
	want := []Range{
		{Start: 0, Length: 1 << 20}, {Start: 3 << 20, Length: 1 << 20}, {Start: 4 << 20, Length: 4 << 20}, {Start: 8 << 20, Length: 2 << 20},
		{Start: 21 << 20, Length: 512},
	}
	for i, r := range m.Ranges {
		if i >= len(want) || r.Start != want[i].Start || r.Length != want[i].Length || r.SHA256 != sha256.Sum256(img[r.Start:r.End()]) {
			t.Errorf("range %d: %+v", i, r)
		}
	}
	if len(m.Ranges) != len(want) || m.Data() != 8<<20+512 {
		t.Errorf("%d ranges with %d bytes", len(m.Ranges), m.Data())
	}
	covered := m.Data()
	for _, g := range m.Gaps() {
		if !Zero(img[g.Start : g.Start+g.Length]) {
			t.Errorf("gap %+v is not zero", g)
		}
		covered += g.Length
	}
	if covered != m.Size {
		t.Errorf("ranges and gaps cover %d of %d bytes", covered, m.Size)
	}
	again, fileAgain := packed(t, img)
	if !bytes.Equal(fileAgain, file) {
		t.Error("packing twice gives other bytes")
	}
	a, errA := m.Digest()
	b, errB := again.Digest()
	if errA != nil || errB != nil || a != b {
		t.Errorf("%s, %s, %v, %v", a, b, errA, errB)
	}
}

func key(t testing.TB) (ed25519.PrivateKey, manifest.Trust) {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return private, manifest.Trust{Threshold: 1, ReleaseKeys: []ed25519.PublicKey{public}}
}

func TestSignedMap(t *testing.T) {
	m, _ := packed(t, example())
	private, trust := key(t)
	_, stranger := key(t)
	data, err := m.Sign(private)
	if err != nil {
		t.Fatal(err)
	}
	got, err := Open(data, trust)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(m) {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := Open(data, stranger); reason(err) != manifest.ReasonSignature {
		t.Errorf("another key: %v", err)
	}
	changed := bytes.Clone(data)
	changed[bytes.Index(data, []byte(`"payload":"`))+200] ^= 1
	if _, err := Open(changed, trust); err == nil {
		t.Errorf("changed: %v", err)
	}
	peeked, keys, err := Peek(data)
	if err != nil || fmt.Sprint(peeked) != fmt.Sprint(m) || len(keys) != 1 || keys[0] != manifest.KeyID(trust.ReleaseKeys[0]) {
		t.Errorf("%v, %q, %v", peeked, keys, err)
	}
	if other, err := manifest.SignPayload("application/vnd.portcullis.other+json", []byte("{}"), private); err != nil {
		t.Fatal(err)
	} else if _, err := Open(other, trust); reason(err) != manifest.ReasonMalformed {
		t.Errorf("another kind of document: %v", err)
	}
}

func TestImpossibleMapsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Map){
		"schema":                 func(m *Map) { m.Schema = "portcullis/blockmap/v2" },
		"no size":                func(m *Map) { m.Size = 0 },
		"half a sector":          func(m *Map) { m.Size++ },
		"too large":              func(m *Map) { m.Size = MaxSize + 512 },
		"nothing compressed":     func(m *Map) { m.Compressed.Size = 0 },
		"no range":               func(m *Map) { m.Ranges = nil },
		"no title":               func(m *Map) { m.Title = "" },
		"long title":             func(m *Map) { m.Title = strings.Repeat("x", MaxTitle+1) },
		"escape in the title":    func(m *Map) { m.Title = "a\x1b[2J" },
		"range twice":            func(m *Map) { m.Ranges[1] = m.Ranges[0] },
		"ranges turned round":    func(m *Map) { m.Ranges[0], m.Ranges[1] = m.Ranges[1], m.Ranges[0] },
		"range before the start": func(m *Map) { m.Ranges[0].Start = -Block },
		"range not aligned":      func(m *Map) { m.Ranges[0].Start = 512; m.Ranges[0].Length = Block },
		"range behind the end":   func(m *Map) { m.Ranges[4].Length = Block },
		"range far behind":       func(m *Map) { m.Ranges[4].Start = 1 << 62 },
		"range of nothing":       func(m *Map) { m.Ranges[0].Length = 0 },
		"range too long":         func(m *Map) { m.Ranges[2].Length = 5 << 20 },
		"range across":           func(m *Map) { m.Ranges = m.Ranges[1:3]; m.Ranges[0].Length = 2 << 20; m.Ranges = m.Ranges[:1] },
		"range within a block":   func(m *Map) { m.Ranges[0].Length = 512 },
	} {
		m, _ := packed(t, example())
		m.Ranges = append([]Range(nil), m.Ranges...)
		change(m)
		if b, err := m.Encode(); reason(err) != ReasonMalformed {
			t.Errorf("%s: %s, %v", name, b, err)
		}
	}
	m, _ := packed(t, example())
	good, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range map[string]string{
		"empty":           "",
		"unknown field":   strings.Replace(string(good), `"title"`, `"more":1,"title"`, 1),
		"white space":     string(good) + " ",
		"another one":     string(good) + "{}",
		"too large":       string(good) + strings.Repeat(" ", MaxEncoded),
		"field twice":     strings.Replace(string(good), `"size"`, `"size":1,"size"`, 1),
		"upper-case hex":  strings.Replace(string(good), m.Ranges[0].SHA256.String(), strings.ToUpper(m.Ranges[0].SHA256.String()), 1),
		"digest too long": strings.Replace(string(good), m.Ranges[0].SHA256.String(), m.Ranges[0].SHA256.String()+"00", 1),
	} {
		if _, err := Decode([]byte(b)); reason(err) != ReasonMalformed {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := Pack(&bytes.Buffer{}, bytes.NewReader(make([]byte, Block-512)), Block-512, "x", nil); reason(err) != ReasonMalformed {
		t.Errorf("less than a block: %v", err)
	}
	if _, err := Pack(&bytes.Buffer{}, bytes.NewReader(make([]byte, Block)), 8*Block, "x", nil); err == nil {
		t.Error("an image shorter than it should be is packed")
	}
}

func FuzzDecode(f *testing.F) {
	m, _ := packed(f, example())
	b, err := m.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := Decode(b)
		if err != nil {
			return
		}
		if again, err := m.Encode(); err != nil || !bytes.Equal(again, b) {
			t.Errorf("%s, %v", again, err)
		}
		end := int64(0)
		for _, r := range m.Ranges {
			if r.Start < end || r.End() > m.Size || r.Length > MaxRange {
				t.Errorf("%+v", r)
			}
			end = r.End()
		}
	})
}
