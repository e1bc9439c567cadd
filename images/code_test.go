package images

import (
	"io/fs"
	"testing"
)

func TestCodeDigestIsOfEachPackageAndStays(t *testing.T) {
	dirs, err := fs.ReadDir(source, ".")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, d := range dirs {
		if !d.IsDir() {
			continue
		}
		digest := CodeDigest(d.Name())
		if other, ok := seen[digest]; ok || len(digest) != 64 {
			t.Errorf("%s has digest %q, as has %q", d.Name(), digest, other)
		}
		seen[digest] = d.Name()
		if CodeDigest(d.Name()) != digest {
			t.Errorf("%s has two digests", d.Name())
		}
	}
	if len(seen) < 8 {
		t.Errorf("only %d packages are known", len(seen))
	}
	defer func() {
		if recover() == nil {
			t.Error("a package that does not exist has a digest")
		}
	}()
	CodeDigest("nosuch")
}
