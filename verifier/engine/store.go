package engine

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrStore is returned where the store is put together in another way than an engine
// does it: what is mounted at the start may be something else than what the engine names.
var ErrStore = errors.New("engine: the store was changed")

var (
	// layerLink is the short name under which overlay2 mounts a layer, in a container's file
	// "lower".
	layerLink = regexp.MustCompile(`^l/[A-Z0-9]{26}$`)
	mountID   = regexp.MustCompile(`^[a-f0-9]{64}$`)
)

// maxLower is the most of a file "lower", bytes: 128 layers of 29 each are the engine's most.
const maxLower = 4096

// overlay2 holds what an engine says of a container's layers against what it will mount.
// The two are not the same: asked, it reads the link of each layer and takes ".." out of it
// by the letters; for the mount it names the link, and the kernel follows each name on the
// way. It also takes for mounted what a link at the place of the mount leads to. So every
// name has to be of the kind and the form that the engine gives it (moby,
// daemon/graphdriver/overlay2/overlay.go: create, getLowerDirs, Get).
func overlay2(told Layers) error {
	own := filepath.Dir(told.Upper)
	home := filepath.Dir(own)
	if !filepath.IsAbs(told.Upper) || told.Upper != filepath.Join(own, "diff") || !mountID.MatchString(filepath.Base(own)) {
		return fmt.Errorf("%w: a container in %.200q", ErrStore, told.Upper)
	}
	if err := directories(own, told.Upper, filepath.Join(own, "work"), filepath.Join(home, "l")); err != nil {
		return err
	}
	if err := mountPlace(filepath.Join(own, "merged")); err != nil {
		return err
	}
	links, err := lower(filepath.Join(own, "lower"))
	if err != nil {
		return err
	}
	if len(links) != len(told.Lower) {
		return fmt.Errorf("%w: %d layers are mounted, the engine names %d", ErrStore, len(links), len(told.Lower))
	}
	for n, link := range links {
		if !layerLink.MatchString(link) {
			return fmt.Errorf("%w: a layer is mounted as %.100q", ErrStore, link)
		}
		to, err := os.Readlink(filepath.Join(home, link))
		if err != nil {
			return fmt.Errorf("%w: %v", ErrStore, err)
		}
		name := strings.TrimSuffix(strings.TrimPrefix(to, "../"), "/diff")
		dir := filepath.Join(home, name)
		if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/:") || to != "../"+name+"/diff" || filepath.Join(dir, "diff") != told.Lower[n] {
			return fmt.Errorf("%w: %s leads to %.200q, the engine names %.200q", ErrStore, link, to, told.Lower[n])
		}
		if err := directories(dir, told.Lower[n]); err != nil {
			return err
		}
	}
	return nil
}

// lower reads the links of a container's layers, the highest first.
func lower(path string) ([]string, error) {
	// What is there may be a pipe; nobody waits for its other end.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", ErrStore, err)
	}
	defer f.Close()
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%w: %.200q is no file", ErrStore, path)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxLower+1))
	if err != nil || len(b) > maxLower {
		return nil, fmt.Errorf("%w: %.200q: %d bytes, %v", ErrStore, path, len(b), err)
	}
	return strings.Split(string(b), ":"), nil
}

// directories refuses what is not there, and what leads elsewhere.
func directories(paths ...string) error {
	for _, p := range paths {
		st, err := os.Lstat(p)
		if err != nil {
			return fmt.Errorf("%w: %v", ErrStore, err)
		}
		if !st.IsDir() {
			return fmt.Errorf("%w: %.200q is no directory", ErrStore, p)
		}
	}
	return nil
}

// mountPlace refuses a link where an engine mounts a container's root: it would find what
// the link leads to mounted there already, and mount nothing. Before the start there is no
// such name.
func mountPlace(path string) error {
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return directories(path)
}
