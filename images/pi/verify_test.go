package pi

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"testing"

	"portcullis/images/blockmap"
	"portcullis/images/bundle"
	"portcullis/images/card"
	"portcullis/images/manifest"
)

func verifyTest(t *testing.T, dir string, keys *Keys) {
	ours := []ed25519.PublicKey{keys.Public()}
	if r := Verify(t.Context(), VerifyOptions{Dir: dir, Keys: ours}); !r.OK || r.OwnTrust || len(r.Checks) != 7 {
		t.Fatalf("a fresh image is refused: %s %s", r.Reason, r.Detail)
	}
	if r := Verify(t.Context(), VerifyOptions{Dir: dir}); !r.OK || !r.OwnTrust || !r.LabChannel {
		t.Errorf("by its own keys: %s %s", r.Reason, r.Detail)
	}
	stranger := newKeys(t)
	if r := Verify(t.Context(), VerifyOptions{Dir: dir, Keys: []ed25519.PublicKey{stranger.Public()}}); r.OK || r.Reason != manifest.ReasonSignature && r.Reason != bundle.ReasonSignature {
		t.Errorf("a stranger's key: %t %s", r.OK, r.Reason)
	}
	for _, c := range []struct {
		file   string
		at     int64
		reason string
	}{
		{CardFile, 1 << 20, blockmap.ReasonDiffers},
		{BundleFile, 60 << 20, bundle.ReasonDiffers},
		{filepath.Join(BootDir, card.PolicyFile), 30, string(ReasonBoot)},
		{filepath.Join(BootDir, card.CmdlineFile), 20, string(ReasonBoot)},
	} {
		path := filepath.Join(dir, c.file)
		flip(t, path, c.at)
		if r := Verify(t.Context(), VerifyOptions{Dir: dir, Keys: ours}); r.OK || r.Reason != c.reason {
			t.Errorf("%s changed: ok %t, %s %s; want %s", c.file, r.OK, r.Reason, r.Detail, c.reason)
		}
		flip(t, path, c.at)
	}
}

func flip(t *testing.T, path string, at int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	must(t, err)
	b[0] ^= 1
	_, err = f.WriteAt(b[:], at)
	must(t, err)
}

func TestNothingIsNoImage(t *testing.T) {
	if IsImage(t.TempDir()) {
		t.Error("an empty directory is an image")
	}
	if r := Verify(t.Context(), VerifyOptions{Dir: t.TempDir()}); r.OK || r.Reason != string(ReasonRead) {
		t.Errorf("%+v", r)
	}
}
