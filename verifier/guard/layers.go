package guard

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/verifier/engine"
	"portcullis/verifier/image"
)

// Engines do not look at the files of an image again once they have unpacked it
// (moby#32153): whoever can write to their store changes what runs, and the image's
// ID stays. So every file of every layer is compared before a start (contents.go).

// treeOf says where the files of a layer are listed, and what the list must hash to.
type treeOf struct {
	DiffID string `json:"diff_id"`
	Digest string `json:"digest"`         // of the list
	Form   string `json:"form,omitempty"` // of the sums in it
}

// treePath is where the list lies. Lists of each form have names of their own: an image
// that was loaded by an older verifierd may share a layer with one that was not.
func (s *state) treePath(t treeOf) string {
	name := strings.TrimPrefix(t.DiffID, "sha256:")
	if t.Form == formVerity {
		name += ".verity"
	}
	return filepath.Join(filepath.Dir(s.path), "trees", name+".json")
}

// layersOf asks where the layers of a container lie. A store that is put together in
// another way than an engine does it is a refusal.
func (g *Guard) layersOf(ctx context.Context, id string) (engine.Layers, error) {
	l, err := g.opt.Engine.Layers(ctx, id)
	if errors.Is(err, engine.ErrStore) {
		return l, refuse(ReasonImageStore, "%v", err)
	}
	return l, err
}

// unpacked compares the directories that a container will be made of with its image.
// first is before its first start: nothing of its own may be there yet. all is to read also what
// the kernel holds against its digest whenever it is read.
func (g *Guard) unpacked(ctx context.Context, id string, made madeByGuard, first, all bool) error {
	c := g.comparer(all)
	if err := g.unpackedBy(ctx, c, id, made, first); err != nil {
		return err
	}
	return g.rest(ctx, c, made)
}

// unpackedBy is unpacked, but for the files that c puts off.
func (g *Guard) unpackedBy(ctx context.Context, c *comparison, id string, made madeByGuard, first bool) error {
	dirs, err := g.layersOf(ctx, id)
	if err != nil {
		return err
	}
	loaded, ok := g.state.image(made.Spec.Image.ID)
	if !ok || len(loaded.Trees) == 0 || len(dirs.Lower) != len(loaded.Trees)+1 {
		return refuse(ReasonImageStore, "%d directories for %d layers", len(dirs.Lower), len(loaded.Trees))
	}
	c.image = loaded.Image.Config
	if err := c.onDisk(dirs.Upper); err != nil {
		return err
	}
	for n, t := range loaded.Trees {
		c.form = t.Form
		// The engine names the highest first; its own layer, with the names that it mounts over, is above all.
		dir := dirs.Lower[len(dirs.Lower)-1-n]
		if err := g.state.list(t, func(list names) error { return c.sameFiles(ctx, dir, list) }); err != nil {
			return err
		}
		if err := c.contents(ctx); err != nil {
			return err
		}
	}
	if err := onlyPlaces(dirs.Lower[0], engineNames); err != nil {
		return err
	}
	switch {
	case first:
		return onlyPlaces(dirs.Upper, []string{})
	case !made.Spec.Profile.WritableRoot:
		return onlyPlaces(dirs.Upper, nil)
	}
	return nil
}

// rest compares the files that were put off, and keeps how all were compared.
func (g *Guard) rest(ctx context.Context, c *comparison, made madeByGuard) error {
	if err := c.each(ctx, c.putOff, 1, runtime.GOMAXPROCS(0)); err != nil {
		return err
	}
	g.compared(made.Spec.Image.ID, c)
	return nil
}

// engineNames are what engines put above an image: empty places to mount over.
var engineNames = []string{".dockerenv", "dev", "dev/console", "dev/pts", "dev/shm", "etc", "etc/hostname", "etc/hosts", "etc/mtab", "etc/resolv.conf", "proc", "sys"}

// onlyPlaces refuses a directory that holds more than empty files and directories of
// these names; of any name where names is nil.
func onlyPlaces(dir string, names []string) error {
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		if name == "." {
			// A link would be walked no further, and followed by the mount.
			if !d.IsDir() {
				return refuse(ReasonImageStore, "%.200q is no directory", dir)
			}
			return nil
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		place := st.IsDir() || st.Mode().IsRegular() && st.Size() == 0 || name == "etc/mtab" && st.Mode().Type() == fs.ModeSymlink
		if !place || names != nil && !slices.Contains(names, name) {
			return refuse(ReasonImageStore, "/%.200q lies over the image", name)
		}
		return nil
	})
}

// sameFiles compares the directory of an unpacked layer with its list, both ways. What is
// in the files is left to contents, as far as there is room to put it off.
func (c *comparison) sameFiles(ctx context.Context, dir string, list names) error {
	var listed nameList
	if err := c.listedFiles(ctx, dir, list, &listed); err != nil {
		return err
	}
	return filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, p)
		if err != nil || listed.has(name) {
			return err
		}
		if !d.IsDir() || !listed.under(name) {
			return refuse(ReasonImageStore, "/%.200q is not of the image", name)
		}
		// A directory that the layer only has names in.
		return sameXattrs(p, &image.File{Path: name, Kind: image.KindDir}, false, c.by)
	})
}

// listedFiles compares all that is listed, and notes the names.
func (c *comparison) listedFiles(ctx context.Context, dir string, list names, listed *nameList) error {
	// A name waits for the next: that may say that it hides the directory below it.
	var last *image.File
	compare := func(opaque bool) error {
		if last == nil {
			return nil
		}
		if err := c.sameFile(dir, last, opaque); err != nil || len(c.todo) < todoMost {
			return err
		}
		return c.contents(ctx)
	}
	err := list(func(f *image.File) error {
		if err := listed.add(f.Path); err != nil {
			return err
		}
		err := compare(last != nil && f.Kind == image.KindOpaque && f.Path == last.Path)
		last = f
		return err
	})
	if err != nil {
		return err
	}
	return compare(false)
}

// shift is what an engine with user namespaces adds to the owners that an image
// names: who root in a container is outside. Without them it is 0, 0.
type shift struct{ uid, gid int }

// shift is that of the engine that was met.
func (g *Guard) shift() shift {
	g.mu.Lock()
	defer g.mu.Unlock()
	return shift{g.info.FirstUID, g.info.FirstGID}
}

// sameFile compares one name, but not what is in a file. opaque is a directory that hides
// the one below it.
func (c *comparison) sameFile(dir string, f *image.File, opaque bool) error {
	path, by := filepath.Join(dir, f.Path), c.by
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return refuse(ReasonImageStore, "/%.200q: %v", f.Path, err)
	}
	if st.Dev != c.dev {
		return refuse(ReasonImageStore, "/%.200q lies on another file system", f.Path)
	}
	kind := map[byte]uint32{image.KindFile: unix.S_IFREG, image.KindDir: unix.S_IFDIR, image.KindLink: unix.S_IFLNK,
		image.KindWhiteout: unix.S_IFCHR, image.KindOpaque: unix.S_IFDIR}[f.Kind]
	if st.Mode&unix.S_IFMT != kind {
		return refuse(ReasonImageStore, "/%.200q is of another kind", f.Path)
	}
	switch {
	case f.Kind == image.KindWhiteout && st.Rdev != 0:
		return refuse(ReasonImageStore, "/%.200q is a device", f.Path)
	case f.Kind == image.KindWhiteout:
		return nil
	case f.Kind == image.KindOpaque:
		return sameXattrs(path, f, true, by) // the directory's own attributes are those of its own entry
	}
	if err := sameXattrs(path, f, opaque, by); err != nil {
		return err
	}
	if int64(st.Uid) != int64(f.UID)+int64(by.uid) || int64(st.Gid) != int64(f.GID)+int64(by.gid) || f.Kind != image.KindLink && st.Mode&0o7777 != f.Mode {
		return refuse(ReasonImageStore, "/%.200q has another owner or mode", f.Path)
	}
	switch f.Kind {
	case image.KindLink:
		to, err := os.Readlink(path)
		if err != nil || to != f.Link {
			return refuse(ReasonImageStore, "/%.200q leads elsewhere", f.Path)
		}
	case image.KindFile:
		if st.Size != f.Size {
			return refuse(ReasonImageStore, "/%.200q has %d bytes, the image has %d", f.Path, st.Size, f.Size)
		}
		c.todo = append(c.todo, content{dir, f.Path, f.Size, f.Sum, c.form, st.Ino})
	}
	return nil
}
