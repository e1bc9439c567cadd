package fetch

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"portcullis/verifier/image"
	"portcullis/verifier/image/imagetest"
)

func TestCredentialsThatAreNone(t *testing.T) {
	dir := t.TempDir()
	for text, mode := range map[string]os.FileMode{"h.example n p": 0o644, "h.example n": 0o600, "h.example n p q r": 0o600, "h.example n p /etc": 0o600,
		"a n p\na n p": 0o600, "/etc n p": 0o600, strings.Repeat("#", maxCredentials+1): 0o600} {
		file := filepath.Join(dir, "f")
		os.Remove(file)
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
		if _, err := LoadCredentials(file); Reason(err) != ReasonCredentials {
			t.Errorf("%.40q %o: %v", text, mode, err)
		}
	}
	for _, file := range []string{dir, filepath.Join(dir, "none"), "/dev/zero"} {
		if _, err := LoadCredentials(file); Reason(err) != ReasonCredentials {
			t.Errorf("%s: %v", file, err)
		}
	}
}

func TestParseReference(t *testing.T) {
	sum := sha256.Sum256(nil)
	d := "@sha256:" + hex.EncodeToString(sum[:])
	for s, ok := range map[string]bool{
		"registry.example/team/app" + d: true, "localhost/app" + d: true, "127.0.0.1:5000/app" + d: true, "[::1]:5000/a/b/c" + d: true, "docker.io/library/debian" + d: true,
		"registry.example/app": false, "registry.example/app:1": false, "registry.example/app:1" + d: false, "app" + d: false, "team/app" + d: false,
		"registry.example/App" + d: false, "registry.example/../x" + d: false, "registry.example/a//b" + d: false, "registry.example/" + d: false,
		"user@registry.example/app" + d: false, "http://registry.example/app" + d: false, "registry.example/app@sha256:abc": false, "registry.example/app?x" + d: false,
	} {
		if r, err := ParseReference(s); (err == nil) != ok || err != nil && Reason(err) != ReasonReference {
			t.Errorf("%q: %+v %v", s, r, err)
		}
	}
	if r, _ := ParseReference("docker.io/library/debian" + d); r.Host != "registry-1.docker.io" {
		t.Error(r)
	}
}

func FuzzParseReference(f *testing.F) {
	f.Add("registry.example/team/app@sha256:" + strings.Repeat("0", 64))
	f.Add("a@b")
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseReference(s)
		if err != nil {
			return
		}
		if strings.ContainsAny(r.Host+r.Repository, " \r\n?#@\\%") || strings.Contains(r.Repository, "..") {
			t.Errorf("%q: %+v", s, r)
		}
	})
}

func FuzzChallenge(f *testing.F) {
	f.Add(`Bearer realm="https://auth.example/token",service="s",scope="repository:a:pull"`)
	f.Add(`Basic realm="x"`)
	f.Add(`Bearer realm="a",realm="b"`)
	f.Fuzz(func(t *testing.T, s string) {
		scheme, values := challenge(s)
		if scheme != strings.ToLower(scheme) || len(values) > 4096 {
			t.Errorf("%q", scheme)
		}
		for _, v := range values {
			if strings.ContainsAny(v, `"\`) {
				t.Errorf("%q", v)
			}
		}
	})
}

func FuzzCredentials(f *testing.F) {
	f.Add([]byte("h.example n p\n# x\n"))
	f.Add([]byte("token.example n p h.example\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := parseCredentials(b)
		if err == nil {
			for host, l := range c {
				if host == "" || l.name == "" || l.password == "" {
					t.Errorf("%q", b)
				}
			}
		}
	})
}

func FuzzManifest(f *testing.F) {
	files := imagetest.OCI(f, imagetest.OneFile(f, "a", "b"))
	for name, b := range files {
		if strings.HasPrefix(name, "blobs/") && bytes.HasPrefix(b, []byte("{")) {
			f.Add(b)
		}
	}
	f.Add([]byte(`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		config, layers, err := image.ParseManifest(b, image.TypeOf(b))
		if err != nil {
			return
		}
		total := config.Size
		for _, l := range layers {
			if l.Size <= 0 || total+l.Size < total {
				t.Errorf("%+v", layers)
			}
			total += l.Size
		}
	})
}
