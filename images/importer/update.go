package importer

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"portcullis/images/bundle"
	"portcullis/images/fat"
	"portcullis/images/manifest"
)

// Limits of what is looked at on a stick.
const (
	maxBundles = 16      // files that end in bundle.Extension
	maxBundle  = 1 << 30 // bytes of one
	maxHead    = 2 << 20 // bytes of a bundle that its manifest can take
)

// UpdateOptions say which updates are taken.
type UpdateOptions struct {
	Trust manifest.Trust // of this Pi's own release
	// Sequence of the release that runs: only newer ones are taken.
	Sequence uint64
	// Tried is a file that remembers the last update that was taken, so that one that
	// fell back is not taken again at every start while the stick is in.
	Tried string
	// Apply writes the bundle into the other slot.
	Apply func(ctx context.Context, r io.Reader) error
}

// UpdateResult says what happened to the updates of a stick.
type UpdateResult struct {
	File     string `json:"file"`
	Sequence uint64 `json:"sequence"`
	Digest   string `json:"manifest_sha256"`
	Changed  bool   `json:"changed"` // it is on trial at the next start
}

// errEnough ends reading a file early.
var errEnough = errors.New("enough")

// Update takes the newest update of a stick that this Pi may run. A stick without
// one is no error: then File is empty.
func Update(ctx context.Context, stick *fat.FS, o UpdateOptions) (UpdateResult, error) {
	best, refused, err := newest(stick, o.Trust)
	if err != nil {
		return UpdateResult{}, err
	}
	switch {
	case best.File == "":
		return best, refused
	case best.Sequence <= o.Sequence:
		return best, nil // the stick is still in after its update
	}
	if last, err := readSmall(o.Tried, 128); err == nil && strings.TrimSpace(string(last)) == best.Digest {
		return best, refuse(ReasonTried, "%s (release %d) was taken before, and release %d runs; portcullis update tries it again", best.File, best.Sequence, o.Sequence)
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(stick.CopyFile(w, best.File, maxBundle)) }()
	err = o.Apply(ctx, r)
	r.Close()
	if err != nil {
		return best, err
	}
	best.Changed = true
	return best, remember(o.Tried, best.Digest)
}

// newest finds the bundle with the highest sequence among those that are signed.
// refused says why the last of the others was not taken.
func newest(stick *fat.FS, trust manifest.Trust) (best UpdateResult, refused, err error) {
	entries, err := stick.List()
	if err != nil {
		return best, nil, err
	}
	seen := 0
	for _, e := range entries {
		if e.Dir || strings.Contains(e.Path, "/") || !strings.EqualFold(filepath.Ext(e.Path), bundle.Extension) {
			continue
		}
		if seen++; seen > maxBundles {
			break
		}
		m, digest, err := head(stick, e.Path, trust)
		if err != nil {
			refused = err
			continue
		}
		if m.Sequence > best.Sequence {
			best = UpdateResult{File: e.Path, Sequence: m.Sequence, Digest: digest}
		}
	}
	return best, refused, nil
}

// head verifies the manifest of a bundle without reading more of it.
func head(stick *fat.FS, path string, trust manifest.Trust) (*bundle.Manifest, string, error) {
	r, w := io.Pipe()
	go func() {
		err := stick.CopyFile(&limited{w: w, left: maxHead}, path, maxBundle)
		if errors.Is(err, errEnough) {
			err = nil
		}
		w.CloseWithError(err)
	}()
	defer r.Close()
	b, err := bundle.Open(r, trust)
	if err != nil {
		return nil, "", err
	}
	return &b.Manifest, b.Digest, b.Close()
}

// limited passes on so many bytes.
type limited struct {
	w    io.Writer
	left int
}

func (l *limited) Write(b []byte) (int, error) {
	if l.left <= 0 {
		return 0, errEnough
	}
	n, err := l.w.Write(b[:min(len(b), l.left)])
	l.left -= n
	if err == nil && n < len(b) {
		err = errEnough
	}
	return n, err
}

// remember writes one line to path, whole or not at all.
func remember(path, line string) error {
	fresh := path + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return refuse(ReasonStore, "%w", err)
	}
	f, err := os.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return refuse(ReasonStore, "%w", err)
	}
	_, err = f.WriteString(line + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return refuse(ReasonStore, "%w", err)
	}
	if err := errors.Join(os.Rename(fresh, path), syncDir(filepath.Dir(path))); err != nil {
		return refuse(ReasonStore, "%w", err)
	}
	return nil
}
