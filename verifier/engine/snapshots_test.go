package engine

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
)

// answered is an answer of containerd with one mount.
func answered(kind string, options ...string) []byte {
	m := protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), kind)
	m = protowire.AppendString(protowire.AppendTag(m, 2, protowire.BytesType), kind)
	for _, o := range options {
		m = protowire.AppendString(protowire.AppendTag(m, 4, protowire.BytesType), o)
	}
	return protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), m)
}

func TestLayersOfASnapshot(t *testing.T) {
	var m mountsResponse
	if err := m.decode(answered("overlay", "index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs")); err != nil {
		t.Fatal(err)
	}
	l, err := m.layers()
	if err != nil || l.Upper != "/s/3/fs" || !slices.Equal(l.Lower, []string{"/s/2/fs", "/s/1/fs"}) {
		t.Errorf("%+v %v", l, err)
	}
	for name, b := range map[string][]byte{
		"nothing":             nil,
		"not an overlay":      answered("bind", "rbind"),
		"two mounts":          append(answered("overlay", "lowerdir=/a", "upperdir=/b"), answered("overlay", "lowerdir=/a", "upperdir=/b")...),
		"no layers":           answered("overlay", "upperdir=/b"),
		"nothing to write to": answered("overlay", "lowerdir=/a"),
		"two lists":           answered("overlay", "lowerdir=/a", "lowerdir=/c", "upperdir=/b"),
		"two upper":           answered("overlay", "lowerdir=/a", "upperdir=/b", "upperdir=/c"),
		"not from the root":   answered("overlay", "lowerdir=a", "upperdir=/b"),
		"through the parent":  answered("overlay", "lowerdir=/x/../a", "upperdir=/b"),
		"an empty one":        answered("overlay", "lowerdir=/a::/c", "upperdir=/b"),
		"an escaped colon":    answered("overlay", `lowerdir=/a\:/c`, "upperdir=/b"),
	} {
		var m mountsResponse
		if err := m.decode(b); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if l, err := m.layers(); err == nil {
			t.Errorf("%s: taken: %+v", name, l)
		}
	}
	if err := m.decode([]byte{0x0a, 0x7f, 1}); err == nil {
		t.Error("a message that ends early was taken")
	}
}

// What is taken as layers are directories in their one plain form.
func FuzzMounts(f *testing.F) {
	f.Add(answered("overlay", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs"))
	f.Add(answered("bind", "rbind"))
	f.Add([]byte{0x0a, 0x7f, 1})
	f.Add([]byte{0x08, 1, 0x0a, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		var m mountsResponse
		if m.decode(b) != nil {
			return
		}
		l, err := m.layers()
		if err != nil {
			return
		}
		for _, dir := range append(l.Lower, l.Upper) {
			if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir || strings.ContainsAny(dir, `:\`) && dir != l.Upper {
				t.Errorf("a layer in %q", dir)
			}
		}
	})
}

// Whom an engine maps root to is read from one form only.
func TestFirstOfARemappedEngine(t *testing.T) {
	if uid, gid, err := firstOf("/var/lib/docker/200000.300000"); err != nil || uid != 200000 || gid != 300000 {
		t.Errorf("%d %d %v", uid, gid, err)
	}
	for _, root := range []string{"/var/lib/docker", "/var/lib/docker/0.0", "/x/-1.5", "/x/1", "/x/1.2.3", "/x/a.b", ""} {
		if _, _, err := firstOf(root); err == nil {
			t.Errorf("%q was taken", root)
		}
	}
}
