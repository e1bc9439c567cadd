package deb

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const digestA = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseURIs(t *testing.T) {
	out := "Reading package lists...\n" +
		"'file:/pool/libc6.deb' libc6_2.41-12_amd64.deb 100 SHA256:" + digestA + "\n" +
		"'file:/pool/a.deb' attr_1%3a2.5-3_amd64.deb 7 SHA256:" + digestA + "\n"
	l, err := parseURIs(out)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Join(l.Names(), " "); got != "attr=1:2.5-3 libc6=2.41-12" {
		t.Fatalf("got %q: sorted by name, with the epoch, is wanted", got)
	}
	back, err := ParseLock(l.Encode())
	if err != nil || !bytes.Equal(back.Encode(), l.Encode()) {
		t.Fatalf("lock does not survive encoding: %v", err)
	}
	if p, ok := back.Get("libc6"); !ok || p.Size != 100 {
		t.Fatalf("Get found %+v %t", p, ok)
	}
	if _, ok := back.Get("libc"); ok {
		t.Fatal("Get found a package that is not there")
	}
}

func TestParseURIsRefuses(t *testing.T) {
	line := func(file, size, digest string) string { return "'x' " + file + " " + size + " " + digest + "\n" }
	for name, out := range map[string]string{
		"a weak digest":        line("a_1_all.deb", "1", "MD5Sum:d41d8cd98f00b204e9800998ecf8427e"),
		"a short digest":       line("a_1_all.deb", "1", "SHA256:abcd"),
		"a size of nothing":    line("a_1_all.deb", "0", "SHA256:"+digestA),
		"a name with a path":   line("../a_1_all.deb", "1", "SHA256:"+digestA),
		"a name without parts": line("a.deb", "1", "SHA256:"+digestA),
		"a bad escape":         line("a_1%zz_all.deb", "1", "SHA256:"+digestA),
		"one package twice":    strings.Repeat(line("a_1_all.deb", "1", "SHA256:"+digestA), 2),
		"a missing field":      "'x' a_1_all.deb 1\n",
	} {
		if l, err := parseURIs(out); err == nil {
			t.Errorf("%s was accepted: %v", name, l.Names())
		}
	}
}

func TestParseTargetsTakesTheMachinesOwnMirror(t *testing.T) {
	out := `http://other.invalid/|bookworm|Vendor|main
http://mirror.invalid/debian/|bookworm-updates|Debian|main
http://mirror.invalid/debian/|bookworm|Debian|main
http://mirror.invalid/debian-security/|bookworm-security|Debian|main
`
	base, security, err := parseTargets(out)
	if err != nil || base != "http://mirror.invalid/debian/" || security != "http://mirror.invalid/debian-security/" {
		t.Fatalf("got %q, %q, %v", base, security, err)
	}
	if _, _, err := parseTargets("http://other.invalid/|x|Vendor|main\n"); err == nil {
		t.Fatal("a machine without a Debian archive was accepted")
	}
	if base, _, err := parseTargets("http://a.invalid/\" evil|bookworm|Debian|main\n"); err == nil {
		t.Fatalf("an address with a quote in it was accepted: %q", base)
	}
}

// makeDeb builds a package with dpkg-deb, as an archive would serve it.
func makeDeb(t *testing.T, name string, files map[string]string) string {
	t.Helper()
	tool, err := NeedTool("dpkg-deb", "dpkg")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files["DEBIAN/control"] = "Package: " + name + "\nVersion: 1\nArchitecture: all\nMaintainer: nobody\nDescription: test\n"
	files["DEBIAN/postinst"] = "#!/bin/sh\ntouch " + filepath.Join(dir, "script-was-run") + "\n"
	for p, content := range files {
		p = filepath.Join(dir, "tree", p)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	out := filepath.Join(dir, name+".deb")
	if text, err := exec.Command(tool, "--root-owner-group", "-b", filepath.Join(dir, "tree"), out).CombinedOutput(); err != nil {
		t.Fatalf("dpkg-deb: %v: %s", err, text)
	}
	t.Cleanup(func() {
		if _, err := os.Stat(filepath.Join(dir, "script-was-run")); err == nil {
			t.Error("a maintainer script was run")
		}
	})
	return out
}

func TestWalkReadsWithoutRunningScripts(t *testing.T) {
	path := makeDeb(t, "tool", map[string]string{"usr/bin/tool": "program", "etc/tool.conf": "text"})
	found := map[string]string{}
	err := Walk(context.Background(), path, func(h *tar.Header, r io.Reader) error {
		if h.Typeflag != tar.TypeReg {
			return nil
		}
		b, err := io.ReadAll(r)
		found[h.Name] = string(b)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(found) != 2 || found["/usr/bin/tool"] != "program" || found["/etc/tool.conf"] != "text" {
		t.Fatalf("found %v", found)
	}
}

func TestWalkEndsWithTheCaller(t *testing.T) {
	path := makeDeb(t, "tool", map[string]string{"usr/bin/tool": strings.Repeat("x", 1<<20)})
	stop := errors.New("stop")
	err := Walk(context.Background(), path, func(h *tar.Header, r io.Reader) error { return stop })
	if !errors.Is(err, stop) {
		t.Fatalf("got %v", err)
	}
	if err := Walk(context.Background(), path+".absent", func(*tar.Header, io.Reader) error { return nil }); err == nil {
		t.Fatal("a package that is not there was read")
	}
}

// An archive that was tampered with may name a path outside of the root.
func TestWalkRefusesPathOutsideTheRoot(t *testing.T) {
	for _, h := range []tar.Header{
		{Name: "./../../etc/passwd", Typeflag: tar.TypeReg},
		{Name: "./usr/../../x", Typeflag: tar.TypeReg},
		{Name: "./ok", Typeflag: tar.TypeLink, Linkname: "../../etc/shadow"},
	} {
		var buf bytes.Buffer
		w := tar.NewWriter(&buf)
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		w.Close()
		err := walkTar(&buf, func(*tar.Header, io.Reader) error { return nil })
		if !errors.Is(err, ErrUnsafePath) {
			t.Errorf("%s → %s: got %v", h.Name, h.Linkname, err)
		}
	}
}

// What apt brought is taken into the store only under the digest that was resolved.
func TestAdoptTakesOnlyWhatWasResolved(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(s.Dir, "debs"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	good, bad := []byte("resolved"), []byte("replaced on the way")
	d := sha256.Sum256(good)
	for name, b := range map[string][]byte{"good_1_all.deb": good, "bad_1_all.deb": bad} {
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l := &Lock{Packages: []Package{
		{Name: "bad", Version: "1", Arch: "all", Size: 9, SHA256: digestA},
		{Name: "good", Version: "1", Arch: "all", Size: int64(len(good)), SHA256: hex.EncodeToString(d[:])},
	}}
	if err := s.adopt(dir, l); err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(filepath.Join(s.Dir, "debs"))
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != hex.EncodeToString(d[:])+".deb" {
		t.Fatalf("the store holds %v", entries)
	}
}

func TestNeedToolNamesThePackage(t *testing.T) {
	_, err := NeedTool("no-such-tool-at-all", "its-package")
	if err == nil || !strings.Contains(err.Error(), "apt-get install its-package") {
		t.Fatalf("got %v", err)
	}
}

func FuzzParseURIs(f *testing.F) {
	f.Add("'http://x/y.deb' y_1%3a2_amd64.deb 10 SHA256:" + digestA + "\n")
	f.Add("Reading\n'x' a_1_all.deb 1 MD5Sum:00\n")
	f.Fuzz(func(t *testing.T, s string) {
		l, err := parseURIs(s)
		if err != nil {
			return
		}
		if _, err := ParseLock(l.Encode()); err != nil {
			// A version may hold what ParseLock refuses; nothing else may.
			for _, p := range l.Packages {
				if p.Version == "" {
					return
				}
			}
			t.Fatalf("a lock that was made does not parse: %v", err)
		}
	})
}

func FuzzParseLock(f *testing.F) {
	f.Add([]byte(`{"packages":[{"name":"a1","version":"1","arch":"all","size":1,"sha256":"` + digestA + `"}]}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLock(b)
		if err != nil {
			return
		}
		if again, err := ParseLock(l.Encode()); err != nil || len(again.Packages) != len(l.Packages) {
			t.Fatalf("%v", err)
		}
	})
}

// A package that the archive does not have (any more) is a typed error, so that
// the builder can ask the archive anew.
func TestFetchOfWhatIsGone(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	r := Request{Suite: "trixie", Arch: "amd64", Components: []string{"main"}}
	l := &Lock{Packages: []Package{{Name: "bash", Version: "0.0-1", Arch: "amd64", Size: 5, SHA256: digestA}}}
	if err := s.Fetch(t.Context(), r, l, nil); !errors.Is(err, ErrFetch) {
		t.Fatalf("got %v", err)
	}
	if entries, _ := filepath.Glob(filepath.Join(s.Dir, "fetch-*")); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	// What is there already needs no archive.
	have := filepath.Join(s.Dir, "debs", digestA+".deb")
	if err := os.WriteFile(have, []byte("12345"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := s.Fetch(t.Context(), r, l, nil); err != nil {
		t.Fatal(err)
	}
}

// The private configuration names no source, state or cache of this machine.
func TestConfigurationIsPrivate(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	conf, err := s.configure(t.Context(), Request{Suite: "trixie", Arch: "amd64", Components: []string{"main", "non-free-firmware"}})
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "APT_CONFIG="+conf)
	out, err := run(t.Context(), env, "apt-config", "shell", "STATE", "Dir::State/d", "STATUS", "Dir::State::status/f", "CACHE", "Dir::Cache/d", "LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d", "ARCH", "APT::Architecture")
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(out), "\n") {
		if !strings.Contains(line, s.Dir) && !strings.HasPrefix(line, "ARCH='amd64'") {
			t.Errorf("not private: %s", line)
		}
	}
	if n := strings.Count(out, "="); n != 6 {
		t.Errorf("%d of 6 settings: %s", n, out)
	}
	b, err := os.ReadFile(filepath.Join(filepath.Dir(conf), "sources.list"))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		if !strings.Contains(line, "signed-by="+keyring) || strings.Contains(line, "trusted=") || !strings.Contains(line, " trixie") {
			t.Errorf("source %q", line)
		}
	}
}

// Backports are asked only where a package of them is wanted, with lists of their
// own: a build without them must not see what they have.
func TestBackportsAreSeparate(t *testing.T) {
	s := &Store{Dir: t.TempDir()}
	r := Request{Suite: "trixie", Arch: "arm64", Components: []string{"main"}}
	without, err := s.configure(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	r.Backports = []string{"linux-image-arm64"}
	with, err := s.configure(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	for conf, want := range map[string]bool{without: false, with: true} {
		b, err := os.ReadFile(filepath.Join(filepath.Dir(conf), "sources.list"))
		if err != nil || strings.Contains(string(b), " trixie-backports main") != want {
			t.Errorf("backports %t: %v\n%s", want, err, b)
		}
	}
	if without == with {
		t.Error("both share a directory, so that one drops the other's lists")
	}
}

// A build machine that takes unsigned archives must not make our images of them.
func TestAttackBuildMachineThatTrustsUnsignedArchives(t *testing.T) {
	machine := filepath.Join(t.TempDir(), "machine.conf")
	options := []string{"Acquire::AllowInsecureRepositories", "Acquire::AllowWeakRepositories", "Acquire::AllowDowngradeToInsecureRepositories"}
	var hostile strings.Builder
	for _, o := range options {
		fmt.Fprintf(&hostile, "%s \"true\";\n", o)
	}
	if err := os.WriteFile(machine, []byte(hostile.String()), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("APT_CONFIG", machine)
	if out, err := run(t.Context(), nil, "apt-config", "dump", options[0]); err != nil || !strings.Contains(out, "true") {
		t.Fatalf("the machine is not hostile: %q %v", out, err)
	}
	s := &Store{Dir: t.TempDir()}
	conf, err := s.configure(t.Context(), Request{Suite: "trixie", Arch: "amd64", Components: []string{"main"}})
	if err != nil {
		t.Fatal(err)
	}
	env := append(os.Environ(), "APT_CONFIG="+conf)
	for _, o := range append(options, "APT::Get::AllowUnauthenticated") {
		out, err := run(t.Context(), env, "apt-config", "shell", "V", o+"/b")
		if err != nil || strings.TrimSpace(out) != "V='false'" {
			t.Errorf("%s: %q %v", o, out, err)
		}
	}
}

func TestFileLockKeepsOthersOut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	unlock, err := FileLock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 120*time.Millisecond)
	defer cancel()
	if _, err := FileLock(ctx, path); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("a second holder: %v", err)
	}
	unlock()
	again, err := FileLock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	again()
}
