package debroot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"portcullis/images"
	"portcullis/images/deb"
)

// unpackVersion is part of every key. The stages that unpack packages are slow
// and their code, in this package, hardly changes: they do not depend on the
// whole of it but on this number. Raise it when they make other bytes.
const unpackVersion = "3"

// Key digests what a stage depends on. Every part is named and framed, so that
// two different inputs never run together into one.
type Key struct{ parts bytes.Buffer }

// NewKey begins the key of a stage that the named packages below images/ make.
func NewKey(stage string, packages ...string) *Key {
	k := new(Key)
	k.Add("stage", stage).Add("unpack", unpackVersion)
	for _, p := range packages {
		k.Add("code of "+p, images.CodeDigest(p))
	}
	return k
}

func (k *Key) Add(name string, value any) *Key {
	s := fmt.Sprint(value)
	fmt.Fprintf(&k.parts, "%s %d\n%s\n", name, len(s), s)
	return k
}

func (k *Key) hex() string {
	d := sha256.Sum256(k.parts.Bytes())
	return hex.EncodeToString(d[:20])
}

// Stage returns the directory with the result of the stage called name with
// key k, which make has to fill when it is not there yet. What make writes is
// renamed into place as a whole: a build that is killed leaves no half result.
func (m *Maker) Stage(ctx context.Context, name string, k *Key, make func(dir string) error) (dir string, cached bool, err error) {
	parent := filepath.Join(m.CacheDir, name)
	dir = filepath.Join(parent, k.hex())
	if _, err := os.Stat(dir); err == nil {
		now := time.Now()
		return dir, true, os.Chtimes(dir, now, now) // used: prune looks at it
	}
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", false, err
	}
	unlock, err := deb.FileLock(ctx, filepath.Join(parent, k.hex()+".lock"))
	if err != nil {
		return "", false, err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil { // another build made it while we waited
		return dir, true, nil
	}
	tmp, err := os.MkdirTemp(parent, ".new-")
	if err != nil {
		return "", false, err
	}
	defer os.RemoveAll(tmp)
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", false, err
	}
	if err := make(tmp); err != nil {
		return "", false, err
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", false, err
	}
	return dir, false, nil
}

// What prune keeps of each stage: the newest ones, and whatever another build
// may have in its hands.
const (
	keepStages = 4
	keepFor    = 2 * time.Hour
)

// Prune removes old results of the named stages, so that the cache of somebody who
// builds all day does not fill the disk.
func (m *Maker) Prune(stages ...string) error {
	for _, name := range stages {
		entries, err := os.ReadDir(filepath.Join(m.CacheDir, name))
		if err != nil {
			return err
		}
		var dirs []fs.FileInfo
		for _, e := range entries {
			if info, err := e.Info(); err == nil && e.IsDir() {
				dirs = append(dirs, info)
			}
		}
		slices.SortFunc(dirs, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
		for _, d := range dirs[min(keepStages, len(dirs)):] {
			if time.Since(d.ModTime()) > keepFor {
				if err := os.RemoveAll(filepath.Join(m.CacheDir, name, d.Name())); err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// DigestFile returns the hex SHA-256 of a file.
func DigestFile(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// CopyFile copies src to dst through a temporary name beside it.
func CopyFile(dst, src string, mode os.FileMode) error {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.CreateTemp(filepath.Dir(dst), "."+filepath.Base(dst)+"-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return fmt.Errorf("copy %s: %w", filepath.Base(dst), err)
	}
	if err := out.Chmod(mode); err != nil {
		out.Close()
		return err
	}
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(out.Name(), dst)
}
