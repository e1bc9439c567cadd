package image

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	. "portcullis/verifier/image/imagetest"
)

func readDir(t *testing.T, dir string, o Options) (*Archive, error) {
	t.Helper()
	a, err := Open(t.Context(), dir, o)
	if err == nil {
		t.Cleanup(func() { a.Close() })
	}
	return a, err
}

func whole(t *testing.T, a *Archive) []byte {
	t.Helper()
	r := a.Tar()
	defer r.Close()
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Whatever an image came in, it is the same image and the same archive.
func TestOneImageInEveryForm(t *testing.T) {
	layers := [][]byte{OneFile(t, "bin/a", "one"), OneFile(t, "bin/b", "two"), OneFile(t, "bin/a", "three")}
	files := OCI(t, layers...)
	var done []int64
	o := Options{Progress: func(d, total int64) {
		if d == total {
			done = append(done, d)
		}
	}}
	a, err := readDir(t, files.Dir(t), o)
	if err != nil {
		t.Fatal(err)
	}
	i := a.Image()
	if i.Config != Digest(Config(t, layers...)) || len(i.Layers) != 3 || i.Layers[1] != Digest(layers[1]) || a.Platform != "linux/amd64" || a.User != "65534:65534" {
		t.Errorf("image %+v, platform %s, user %s", i, a.Platform, a.User)
	}
	if len(done) != 1 {
		t.Errorf("progress came to its end %d times", len(done))
	}
	canonical := whole(t, a)
	if again := whole(t, a); !bytes.Equal(canonical, again) {
		t.Error("two archives of one image differ")
	}
	b, err := readDir(t, files.File(t), Options{Platform: "linux/amd64"})
	if err != nil {
		t.Fatal(err)
	}
	if !b.Image().Equal(i) || !bytes.Equal(whole(t, b), canonical) {
		t.Error("the directory and the archive are two images")
	}
	c, err := Read(t.Context(), bytes.NewReader(canonical), t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if !c.Image().Equal(i) || !bytes.Equal(whole(t, c), canonical) {
		t.Error("what is written is not read as the same image")
	}
	// docker save before OCI layouts: the same configuration, a manifest of our own.
	saved := Saved(t, layers...)
	d, err := readDir(t, saved.File(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	j := d.Image()
	if j.Config != i.Config || !slices.Equal(j.Layers, i.Layers) || j.Manifest == i.Manifest {
		t.Errorf("saved: %+v", j)
	}
	e, err := Read(t.Context(), bytes.NewReader(whole(t, d)), t.TempDir(), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if !e.Image().Equal(j) {
		t.Error("a saved image changes when it is written and read again")
	}
}

// Each layer is handed on when it is known to be the one that was named, in its order, and its
// names are not held any longer.
func TestLayersAreHandedOnOneByOne(t *testing.T) {
	layers := [][]byte{OneFile(t, "a", "one"), Tar(t), OneFile(t, "c", "three")}
	dir := OCI(t, layers...).Dir(t)
	var seen []string
	var last *Layer
	end := errors.New("no more")
	o := Options{Layer: func(l *Layer) error {
		if l.Tree == nil || last != nil && last.Tree != nil {
			t.Errorf("layer %d: its tree is %v, that before it %v", len(seen), l.Tree, last)
		}
		last = l
		if seen = append(seen, l.DiffID); len(seen) > len(layers) {
			return end
		}
		return nil
	}}
	a, err := readDir(t, dir, o)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(seen, a.Image().Layers) || last.Tree != nil {
		t.Errorf("%v, the image has %v", seen, a.Image().Layers)
	}
	if _, err := readDir(t, dir, o); !errors.Is(err, end) {
		t.Errorf("who refuses a layer is not heard: %v", err)
	}
	// The third layer is not the one that was named.
	files := OCI(t, layers...)
	files["blobs/sha256/"+Digest(layers[2])[7:]] = OneFile(t, "c", "THREE")
	seen, last = nil, nil
	if _, err := readDir(t, files.Dir(t), o); Reason(err) != ReasonBlob || len(seen) != 2 {
		t.Errorf("%v after %d layers", err, len(seen))
	}
}

func TestSavedArchiveWithALayerTwice(t *testing.T) {
	l := OneFile(t, "a", "same")
	files := Saved(t, l, l)
	dir := files.Dir(t)
	two := filepath.Join(dir, "b", "layer.tar")
	if err := os.Remove(two); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("../a/layer.tar", two); err != nil {
		t.Fatal(err)
	}
	if _, err := readDir(t, dir, Options{}); Reason(err) != ReasonFormat {
		t.Errorf("a link in a directory is followed: %v", err)
	}
	// In an archive docker save makes such links itself.
	out := filepath.Join(t.TempDir(), "x.tar")
	packed := tarWithLink(t, files, "b/layer.tar", "../a/layer.tar")
	if err := os.WriteFile(out, packed, 0o600); err != nil {
		t.Fatal(err)
	}
	a, err := readDir(t, out, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if i := a.Image(); i.Layers[0] != i.Layers[1] {
		t.Errorf("%+v", i)
	}
	if n := bytes.Count(whole(t, a), []byte("same")); n != 1 {
		t.Errorf("the layer is written %d times", n)
	}
}

// What is wrong with an archive as a whole.
func TestAttack_ArchivesThatLie(t *testing.T) {
	base := func() (Files, []byte, []byte) {
		one, two := OneFile(t, "a", "one"), OneFile(t, "b", "two")
		return OCI(t, one, two), one, two
	}
	config := func(l ...[]byte) []byte { return Config(t, l...) }
	manifest := func(c []byte, l ...Descriptor) []byte {
		return JSON(t, map[string]any{"schemaVersion": 2, "mediaType": ManifestType, "config": Describe(ConfigType, c), "layers": l})
	}
	for _, c := range []struct {
		name, reason string
		change       func(f Files, one, two []byte)
	}{
		{"nothing", "", func(Files, []byte, []byte) {}},
		{"a layer is missing", ReasonBlob, func(f Files, one, _ []byte) { delete(f, "blobs/sha256/"+Digest(one)[7:]) }},
		{"a byte of a layer", ReasonBlob, func(f Files, one, _ []byte) { f["blobs/sha256/"+Digest(one)[7:]] = flip(one, 512) }},
		{"a byte of a packed layer", "any", func(f Files, _, two []byte) {
			b := Gzip(t, two)
			f["blobs/sha256/"+Digest(b)[7:]] = flip(b, len(b)/2)
		}},
		{"a layer behind its size", ReasonBlob, func(f Files, one, _ []byte) {
			f["blobs/sha256/"+Digest(one)[7:]] = append(bytes.Clone(one), 0)
		}},
		{"another configuration under the digest", ReasonBlob, func(f Files, one, two []byte) {
			f["blobs/sha256/"+Digest(config(one, two))[7:]] = config(two, one)
		}},
		{"layers exchanged", ReasonConfig, func(f Files, one, two []byte) {
			c := config(one, two)
			f.Blob(two)
			f.Top(t, manifest(c, Describe(LayerType, two), Describe(LayerType, one)))
		}},
		{"a layer more than the configuration has", ReasonConfig, func(f Files, one, two []byte) {
			c := config(one, two)
			f.Blob(two)
			f.Top(t, manifest(c, Describe(LayerType, one), Describe(LayerType, two), Describe(LayerType, two)))
		}},
		{"no layer", ReasonTooLarge, func(f Files, one, two []byte) { f.Top(t, manifest(config(one, two))) }},
		{"two images", ReasonAmbiguous, func(f Files, one, two []byte) {
			m := manifest(config(one, two), Describe(LayerType, one))
			f.Blob(m)
			f["index.json"] = JSON(t, map[string]any{"schemaVersion": 2, "manifests": []Descriptor{Describe(ManifestType, m), Describe(ManifestType, m)}})
		}},
		{"no image", ReasonAmbiguous, func(f Files, _, _ []byte) {
			f["index.json"] = []byte(`{"schemaVersion":2,"manifests":[]}`)
		}},
		{"a key twice", ReasonFormat, func(f Files, _, _ []byte) {
			f["index.json"] = bytes.Replace(f["index.json"], []byte(`{"manifests"`), []byte(`{"manifests":[],"manifests"`), 1)
		}},
		{"a key twice in two cases", ReasonFormat, func(f Files, _, _ []byte) {
			f["index.json"] = bytes.Replace(f["index.json"], []byte(`{"manifests"`), []byte(`{"Manifests":[],"manifests"`), 1)
		}},
		{"a key twice in a spelling that folds to it", ReasonFormat, func(f Files, _, _ []byte) {
			f["index.json"] = bytes.Replace(f["index.json"], []byte(`{"manifests"`), []byte("{\"manife\u017fts\":[],\"manifests\""), 1)
		}},
		{"an index that is a manifest too", ReasonFormat, func(f Files, _, _ []byte) {
			f["index.json"] = bytes.Replace(f["index.json"], []byte(`{"manifests"`), []byte(`{"layers":[],"manifests"`), 1)
		}},
		{"a manifest that is an index too", ReasonFormat, func(f Files, one, two []byte) {
			c := config(one)
			f.Blob(c)
			f.Top(t, JSON(t, map[string]any{"schemaVersion": 2, "manifests": []int{}, "config": Describe(ConfigType, c), "layers": []Descriptor{Describe(LayerType, one)}}))
		}},
		{"a manifest named as another kind", ReasonMediaType, func(f Files, one, _ []byte) {
			f["index.json"] = bytes.Replace(f["index.json"], []byte(ManifestType), []byte("application/vnd.docker.distribution.manifest.v2+json"), 1)
		}},
		{"an artefact, no image", ReasonMediaType, func(f Files, one, _ []byte) {
			f.Top(t, JSON(t, map[string]any{"schemaVersion": 2, "config": Describe("application/vnd.oci.empty.v1+json", []byte("{}")), "layers": []Descriptor{Describe(LayerType, one)}}))
		}},
		{"a layer of another kind", ReasonMediaType, func(f Files, one, two []byte) {
			c := config(one)
			f.Blob(c)
			f.Top(t, manifest(c, Describe("application/vnd.oci.image.layer.nondistributable.v1.tar", one)))
		}},
		{"a packed layer that says it is not", ReasonMediaType, func(f Files, one, two []byte) {
			c, b := config(two), Gzip(t, two)
			f.Blob(c)
			f.Blob(b)
			f.Top(t, manifest(c, Describe(LayerType, b)))
		}},
		{"a plain layer that says it is packed", ReasonMediaType, func(f Files, one, _ []byte) {
			c := config(one)
			f.Blob(c)
			f.Top(t, manifest(c, Describe(LayerType+"+gzip", one)))
		}},
		{"data behind a packed layer", ReasonTar, func(f Files, _, two []byte) {
			c, b := config(two), append(Gzip(t, two), "more"...)
			f.Blob(c)
			f.Blob(b)
			f.Top(t, manifest(c, Describe(LayerType+"+gzip", b)))
		}},
		{"a layer elsewhere", ReasonMediaType, func(f Files, one, _ []byte) {
			c := config(one)
			f.Blob(c)
			f.Top(t, bytes.Replace(manifest(c, Describe(LayerType, one)), []byte(`"layers":[{`), []byte(`"layers":[{"urls":["http://x"],`), 1))
		}},
		{"a digest that leads out", ReasonFormat, func(f Files, one, two []byte) {
			d := Describe(LayerType, one)
			d.Digest = "sha256:../../../../etc/passwd"
			f.Top(t, manifest(config(one, two), d, d))
		}},
		{"another platform than the index says", ReasonPlatform, func(f Files, _, _ []byte) {
			f["index.json"] = bytes.Replace(f["index.json"], []byte(`"mediaType"`), []byte(`"platform":{"os":"linux","architecture":"arm64"},"mediaType"`), 1)
		}},
		{"another layout", ReasonFormat, func(f Files, _, _ []byte) { f["oci-layout"] = []byte(`{"imageLayoutVersion":"2"}`) }},
		{"no index", ReasonFormat, func(f Files, _, _ []byte) { delete(f, "index.json") }},
		{"nothing of an image", ReasonFormat, func(f Files, _, _ []byte) { clear(f); f["readme"] = []byte("hello") }},
	} {
		f, one, two := base()
		c.change(f, one, two)
		for form, path := range map[string]string{"directory": f.Dir(t), "archive": f.File(t)} {
			_, err := readDir(t, path, Options{})
			if got := Reason(err); got != c.reason && (c.reason != "any" || got == "") {
				t.Errorf("%s, as %s: %v, want %q", c.name, form, err, c.reason)
			}
		}
		same(t, c.name, f, Options{})
	}
	f, _, _ := base()
	if _, err := readDir(t, f.File(t), Options{Platform: "linux/arm64"}); Reason(err) != ReasonPlatform {
		t.Errorf("for another machine: %v", err)
	}
}

func flip(b []byte, i int) []byte {
	b = bytes.Clone(b)
	b[i] ^= 1
	return b
}

// One byte anywhere in the layout: another image or a refusal, never the same one.
func TestAttack_OneByteOfEachFile(t *testing.T) {
	files := OCI(t, OneFile(t, "a", "one"), OneFile(t, "b", "two"))
	good, err := readDir(t, files.Dir(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	want := whole(t, good)
	for name, b := range files {
		for i := 0; i < len(b); i += 1 + len(b)/40 {
			files[name] = flip(b, i)
			a, err := readDir(t, files.Dir(t), Options{})
			if err == nil && !bytes.Equal(whole(t, a), want) {
				t.Errorf("byte %d of %s: another image is read, and nothing was said", i, name)
			}
			if err != nil && Reason(err) == "" {
				t.Errorf("byte %d of %s: no reason: %v", i, name, err)
			}
		}
		files[name] = b
	}
}

func TestLimits(t *testing.T) {
	bomb := Gzip(t, bytes.Repeat([]byte{0}, 100<<20))
	zeros := bytes.Repeat([]byte{0}, 100<<20)
	config := Config(t, zeros)
	files := Files{"oci-layout": []byte(`{"imageLayoutVersion":"1.0.0"}`)}
	files.Blob(config)
	files.Blob(bomb)
	files.Top(t, JSON(t, map[string]any{"schemaVersion": 2, "config": Describe(ConfigType, config), "layers": []Descriptor{Describe(LayerType+"+gzip", bomb)}}))
	if _, err := readDir(t, files.Dir(t), Options{}); Reason(err) != ReasonTooLarge {
		t.Errorf("a bomb: %v", err)
	}
	small := OCI(t, OneFile(t, "a", strings.Repeat("x", 100000)))
	for name, l := range map[string]Limits{"packed": {Packed: 10000}, "unpacked": {Unpacked: 10000}, "names": {Entries: -1}} {
		if _, err := readDir(t, small.Dir(t), Options{Limits: l}); Reason(err) != ReasonTooLarge {
			t.Errorf("%s: %v", name, err)
		}
	}
	archive, err := os.ReadFile(small.File(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Read(t.Context(), bytes.NewReader(archive), t.TempDir(), Options{Limits: Limits{Packed: 1000}}); Reason(err) != ReasonTooLarge {
		t.Errorf("a long stream: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Read(ctx, bytes.NewReader(archive), t.TempDir(), Options{}); err == nil {
		t.Error("read although nobody waits")
	}
}

// What is opened is what is read: a pipe, a link or another file in a blob's place.
func TestAttack_FilesThatAreNone(t *testing.T) {
	layer := OneFile(t, "a", "one")
	files := OCI(t, layer)
	blob := filepath.FromSlash("blobs/sha256/" + Digest(layer)[7:])
	for name, make := range map[string]func(path string) error{
		"a pipe":      func(p string) error { return unix.Mkfifo(p, 0o600) },
		"a directory": func(p string) error { return os.Mkdir(p, 0o700) },
		"a link out": func(p string) error {
			out := filepath.Join(t.TempDir(), "x")
			if err := os.WriteFile(out, layer, 0o600); err != nil {
				return err
			}
			return os.Symlink(out, p)
		},
	} {
		dir := files.Dir(t)
		p := filepath.Join(dir, blob)
		if err := os.Remove(p); err != nil {
			t.Fatal(err)
		}
		if err := make(p); err != nil {
			t.Fatal(err)
		}
		if _, err := readDir(t, dir, Options{}); Reason(err) != ReasonFormat {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := files.Dir(t)
	if err := os.Rename(filepath.Join(dir, "blobs"), filepath.Join(t.TempDir(), "blobs")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(files.Dir(t)+"/blobs", filepath.Join(dir, "blobs")); err != nil {
		t.Fatal(err)
	}
	if _, err := readDir(t, dir, Options{}); Reason(err) != ReasonFormat {
		t.Errorf("a directory that is a link: %v", err)
	}
	pipe := filepath.Join(t.TempDir(), "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readDir(t, pipe, Options{}); Reason(err) != ReasonFormat {
		t.Errorf("a pipe as the archive: %v", err)
	}
}
