package service

import (
	"bytes"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/verifier/image"
)

// Two builds, at another time and in another place, give the same bytes; another
// program gives others.
func TestSameProgramSameImage(t *testing.T) {
	program := func(text string) string {
		name := filepath.Join(t.TempDir(), "program")
		if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, time.Now(), time.Unix(int64(len(text))*1e6, 0)); err != nil {
			t.Fatal(err)
		}
		return name
	}
	pack := func(program, arch string) (Built, []byte) {
		b, err := Pack("attestd", arch, program, t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		data, err := os.ReadFile(b.File)
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(data)) != b.Bytes {
			t.Errorf("%d bytes, told were %d", len(data), b.Bytes)
		}
		if left, err := filepath.Glob(filepath.Join(filepath.Dir(b.File), ".*")); err != nil || len(left) != 0 {
			t.Errorf("left: %v %v", left, err)
		}
		return b, data
	}
	text := strings.Repeat("a program ", 1000)
	one, first := pack(program(text), "arm64")
	two, second := pack(program(text), "arm64")
	if !bytes.Equal(first, second) || one.Manifest != two.Manifest || one.SHA256 != two.SHA256 {
		t.Errorf("%+v\n%+v", one, two)
	}
	for _, other := range []Built{first0(pack(program(text+"."), "arm64")), first0(pack(program(text), "amd64"))} {
		if other.Manifest == one.Manifest || other.Config == one.Config {
			t.Errorf("%+v is as the first", other)
		}
	}
	// What the Pi reads of it.
	a, err := image.Open(t.Context(), one.File, image.Options{Platform: "linux/arm64"})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	i := a.Image()
	if i.Manifest != one.Manifest || i.Config != one.Config || !slices.Equal(i.Layers, one.Layers) || a.User != "" {
		t.Errorf("%+v, told was %+v", i, one)
	}
	files := slices.Collect(a.Layers[0].Tree.Files())
	if last := files[slices.IndexFunc(files, func(f image.File) bool { return f.Kind == image.KindFile })]; last.Path != "usr/bin/attestd" || last.Mode != 0o755 || last.UID != 0 || len(files) != len(places)+1 {
		t.Errorf("%+v", files)
	}
}

func first0(b Built, _ []byte) Built { return b }

// The services are built from source, twice, into other directories.
func TestBuildTwice(t *testing.T) {
	cache := t.TempDir()
	build := func() []Built {
		out, err := Build(t.Context(), Options{Names: []string{"pxed"}, Arch: runtime.GOARCH, OutDir: t.TempDir(), CacheDir: cache})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	one, two := build(), build()
	if len(one) != 1 || one[0].SHA256 != two[0].SHA256 || one[0].Bytes < 1<<20 {
		t.Errorf("%+v\n%+v", one, two)
	}
	if _, err := Build(t.Context(), Options{Names: []string{"sh"}, Arch: "arm64", OutDir: t.TempDir(), CacheDir: cache}); err == nil {
		t.Error("a service that is none")
	}
}
