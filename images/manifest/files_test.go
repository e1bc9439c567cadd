package manifest_test

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/images/manifest"
	"portcullis/images/manifest/manifesttest"
)

func TestCheckArtefactNamesTheFirstChunkThatDiffers(t *testing.T) {
	content := manifesttest.Content("x", 3*manifest.ChunkSize+10)
	a, err := manifest.Describe(manifest.Root, bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	if err := manifest.CheckArtefact(a, bytes.NewReader(content)); err != nil {
		t.Fatal(err)
	}
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(content)) }
	for _, row := range []struct {
		name string
		data []byte
		want string
	}{
		{"last byte of the first chunk", edit(func(b []byte) []byte { b[manifest.ChunkSize-1] ^= 1; return b }), "chunk 0 "},
		{"first byte of the second chunk and more", edit(func(b []byte) []byte { b[manifest.ChunkSize] ^= 1; b[len(b)-1] ^= 1; return b }), "chunk 1 "},
		{"last byte", edit(func(b []byte) []byte { b[len(b)-1] ^= 128; return b }), "chunk 3 "},
		{"a byte too many", edit(func(b []byte) []byte { return append(b, 0) }), "chunk 3 "},
		{"a byte too few", content[:len(content)-1], "chunk 3 "},
		{"a chunk too few", content[:3*manifest.ChunkSize], "bytes long"},
		{"empty", nil, "0 bytes long"},
	} {
		err := manifest.CheckArtefact(a, bytes.NewReader(row.data))
		if reasonOf(t, err) != manifest.ReasonArtefact || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %v", row.name, err)
		}
	}
	broken := errors.New("the disk is gone")
	if err := manifest.CheckArtefact(a, failing{broken}); !errors.Is(err, broken) {
		t.Errorf("a read error is hidden: %v", err)
	}
	if off, n := a.ChunkRange(3); off != 3*manifest.ChunkSize || n != 10 {
		t.Errorf("chunk 3 at %d, %d bytes", off, n)
	}
	if err := a.CheckChunk(4, nil); reasonOf(t, err) != manifest.ReasonArtefact {
		t.Errorf("a chunk behind the end: %v", err)
	}
	if err := a.CheckChunk(-1, nil); reasonOf(t, err) != manifest.ReasonArtefact {
		t.Errorf("a chunk before the start: %v", err)
	}
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }

func TestKeyFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "release.key")
	pub, err := manifest.GenerateKey(path)
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v %v", st.Mode(), err)
	}
	key, err := manifest.LoadKey(path)
	if err != nil || !pub.Equal(key.Public()) {
		t.Fatalf("the key read back is another one: %v", err)
	}
	read, err := manifest.LoadPublicKey(path + manifest.PublicSuffix)
	if err != nil || !pub.Equal(read) {
		t.Fatalf("the public key read back is another one: %v", err)
	}
	if _, err := manifest.GenerateKey(path); err == nil {
		t.Fatal("a key was overwritten")
	}
	data, _ := os.ReadFile(path)
	for _, mode := range []os.FileMode{0o640, 0o604, 0o644} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := manifest.LoadKey(path); reasonOf(t, err) != manifest.ReasonKey {
			t.Errorf("mode %o: %v", mode, err)
		}
	}
	for name, content := range map[string][]byte{
		"empty":       nil,
		"not PEM":     []byte("x"),
		"two keys":    append(bytes.Clone(data), data...),
		"not PKCS #8": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
	} {
		other := filepath.Join(t.TempDir(), "other.key")
		if err := os.WriteFile(other, content, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := manifest.LoadKey(other); reasonOf(t, err) != manifest.ReasonKey {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := manifest.LoadPublicKey(other); reasonOf(t, err) != manifest.ReasonKey {
			t.Errorf("%s as public key: %v", name, err)
		}
	}
}

func TestParseTrust(t *testing.T) {
	a, b := manifesttest.Key("a"), manifesttest.Key("b")
	want := manifest.Trust{Threshold: 2, ReleaseKeys: []ed25519.PublicKey{public(a), public(b)}, GatewayKey: public(b)}
	data, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	spaced := bytes.ReplaceAll(data, []byte(","), []byte(" ,\n  "))
	for _, d := range [][]byte{data, spaced} {
		got, err := manifest.ParseTrust(d)
		if err != nil {
			t.Fatal(err)
		}
		if got.Threshold != 2 || len(got.ReleaseKeys) != 2 || !got.ReleaseKeys[1].Equal(public(b)) || !got.GatewayKey.Equal(public(b)) {
			t.Fatalf("%+v", got)
		}
	}
	s := string(data)
	for name, bad := range map[string]string{
		"threshold over the keys": strings.Replace(s, `"threshold":2`, `"threshold":3`, 1),
		"threshold 0":             strings.Replace(s, `"threshold":2`, `"threshold":0`, 1),
		"threshold twice":         strings.Replace(s, `"threshold":2`, `"threshold":2,"threshold":1`, 1),
		"unknown field":           strings.Replace(s, `"threshold":2`, `"threshold":2,"x":1`, 1),
		"data behind the end":     s + "{}",
		"a key twice":             strings.Replace(s, enc(public(a)), enc(public(b)), 1),
		"zero key":                strings.Replace(s, enc(public(a)), enc(make([]byte, 32)), 1),
		"short key":               strings.Replace(s, enc(public(a)), enc(public(a)[1:]), 1),
		"no gateway key":          strings.Replace(s, `"gateway_key":"`+enc(public(b)), `"gateway_key":"`, 1),
		"empty":                   "",
		"too long":                strings.Repeat(" ", 1<<17),
	} {
		if _, err := manifest.ParseTrust([]byte(bad)); reasonOf(t, err) != manifest.ReasonTrust {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := (manifest.Trust{}).Encode(); reasonOf(t, err) != manifest.ReasonTrust {
		t.Errorf("the zero value was encoded: %v", err)
	}
}

func TestFloor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "floor")
	f, err := manifest.OpenFloor(path)
	if err != nil || f.Value() != 0 {
		t.Fatalf("%v", err)
	}
	// A crash can leave a half-written successor; it must not stop or change anything.
	if err := os.WriteFile(path+".new", []byte("portcullis-fl"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, v := range []uint64{5, 5, 9} {
		if err := f.Raise(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Raise(8); reasonOf(t, err) != manifest.ReasonVersion || f.Value() != 9 {
		t.Fatalf("the floor went down: %v", err)
	}
	again, err := manifest.OpenFloor(path)
	if err != nil || again.Value() != 9 {
		t.Fatalf("%v %v", again, err)
	}
	for _, bad := range []string{"", "9\n", "portcullis-floor-v1 -1\n", "portcullis-floor-v1 09\n", "portcullis-floor-v1 9", "portcullis-floor-v1 9\n9\n"} {
		if err := os.WriteFile(path, []byte(bad), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := manifest.OpenFloor(path); reasonOf(t, err) != manifest.ReasonFloor {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func enc(b []byte) string { return base64.StdEncoding.EncodeToString(b) }
