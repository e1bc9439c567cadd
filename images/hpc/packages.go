package hpc

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"time"

	"portcullis/images/deb"
	"portcullis/images/recipe"
	"portcullis/images/squash"
)

// arch is the PC's architecture in Debian's words.
const arch = "amd64"

// request returns what the recipe asks the archive for.
func request(r *recipe.Recipe) deb.Request {
	want := append([]string{r.Kernel.Package, r.Kernel.Stub}, r.Kernel.Firmware...)
	want = append(want, r.Packages...)
	sort.Strings(want)
	return deb.Request{Suite: r.Suite, Arch: arch, Components: r.Components, Packages: slices.Compact(want)}
}

// resolve returns the packages of the recipe: the archive's answer of the first
// build, until Refresh asks again. So a second build is the same build.
func (b *builder) resolve(ctx context.Context) error {
	b.request = request(b.recipe)
	k := newKey("lock").add("suite", b.request.Suite).add("components", b.request.Components).add("packages", b.request.Packages)
	path := filepath.Join(b.CacheDir, "lock", k.hex()+".json")
	if data, err := os.ReadFile(path); err == nil && !b.Refresh {
		lock, err := deb.ParseLock(data)
		if err != nil {
			return &Error{ReasonCacheBroken, "cached package list " + path, err}
		}
		b.lock = lock
		return nil
	}
	begin := b.begin("packages", "ask the archive")
	lock, err := b.store.Resolve(ctx, b.request)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, lock.Encode(), 0o644); err != nil {
		return err
	}
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	b.lock = lock
	begin(false)
	return nil
}

// split sorts the lock: what goes into the root, the kernel's packages, the stub, firmware.
func (b *builder) split() error {
	for _, p := range b.lock.Packages {
		switch {
		case strings.HasPrefix(p.Name, "linux-image-"):
			b.kernelDebs = append(b.kernelDebs, p)
		case p.Name == b.recipe.Kernel.Stub:
			b.stubDeb = p
		case slices.Contains(b.recipe.Kernel.Firmware, p.Name):
			b.firmwareDebs = append(b.firmwareDebs, p)
		case slices.Contains(b.recipe.Without, p.Name):
			if slices.Contains(b.recipe.Packages, p.Name) {
				return refuse(ReasonOptions, "package %s is both wanted and left out by the recipe", p.Name)
			}
		default:
			b.rootDebs = append(b.rootDebs, p)
		}
	}
	if b.stubDeb.Name == "" || len(b.kernelDebs) == 0 {
		return refuse(ReasonMissing, "the kernel or the stub is not among the resolved packages")
	}
	return nil
}

// used are the packages that bytes of the image come from.
func (b *builder) used() []deb.Package {
	out := slices.Concat(b.rootDebs, b.kernelDebs, b.firmwareDebs, []deb.Package{b.stubDeb})
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

func (b *builder) fetch(ctx context.Context) error {
	begin := b.begin("download", fmt.Sprintf("%d packages", len(b.used())))
	if err := b.store.Fetch(ctx, b.request, &deb.Lock{Packages: b.used()}, b.Progress.Step); err != nil {
		return err
	}
	begin(false)
	return nil
}

// base unpacks the root's packages into one tar without what the recipe leaves
// out. It is the slow half of a root image and changes only with the packages.
func (b *builder) base(ctx context.Context) (string, error) {
	k := newKey("base", "deb")
	for _, p := range b.rootDebs {
		k.add("package", p.String()+" "+p.SHA256)
	}
	k.add("exclude", strings.Join(b.recipe.Exclude, "\n"))
	dir, _, err := b.stage(ctx, "base", k, func(dir string) error {
		if err := b.fetch(ctx); err != nil {
			return err
		}
		done := b.begin("unpack", fmt.Sprintf("%d packages", len(b.rootDebs)))
		defer done(false)
		return b.unpack(ctx, filepath.Join(dir, "base.tar"))
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "base.tar"), nil
}

func (b *builder) unpack(ctx context.Context, out string) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	tw := tar.NewWriter(f)
	var done, total int64
	for _, p := range b.rootDebs {
		total += p.Size
	}
	for _, p := range b.rootDebs {
		err := deb.Walk(ctx, b.store.Path(p), func(h *tar.Header, r io.Reader) error {
			if excluded(b.recipe.Exclude, h.Name) {
				return nil
			}
			h.Format, h.PAXRecords, h.Uname, h.Gname = tar.FormatGNU, nil, "", ""
			h.AccessTime, h.ChangeTime = time.Time{}, time.Time{}
			if err := tw.WriteHeader(h); err != nil {
				return err
			}
			_, err := io.Copy(tw, r)
			return err
		})
		if err != nil {
			return err
		}
		done += p.Size
		b.Progress.Step(done, total)
	}
	if err := tw.Close(); err != nil {
		return err
	}
	return f.Close()
}

func excluded(globs []string, p string) bool {
	for _, g := range globs {
		if recipe.MatchPath(g, p) {
			return true
		}
	}
	return false
}

// readBase loads the tar's headers into a tree; contents stay in the file.
func readBase(f *os.File) (*squash.Tree, error) {
	type link struct{ name, target string }
	var links []link
	tree := squash.NewTree(time.Unix(0, 0).UTC())
	newest := time.Unix(0, 0)
	tr := tar.NewReader(f)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("unpacked packages: %w", err)
		}
		if h.ModTime.After(newest) {
			newest = h.ModTime
		}
		if h.Typeflag == tar.TypeLink {
			links = append(links, link{h.Name, h.Linkname})
			continue
		}
		// The reader stands at the first byte of the content: it reads no further than asked.
		offset, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			return nil, err
		}
		n, ok := squash.FromHeader(h, squash.Section{File: f, Offset: offset, Length: h.Size})
		if !ok || h.Name == "/" {
			continue
		}
		if err := tree.Put(h.Name, n); err != nil {
			return nil, err
		}
	}
	for _, l := range links {
		n := tree.Get(l.target)
		if n == nil {
			return nil, fmt.Errorf("unpacked packages: %s is a hard link to %s, which is not there", l.name, l.target)
		}
		if err := tree.Put(l.name, n); err != nil {
			return nil, err
		}
	}
	tree.SetTime(newest.UTC().Truncate(time.Second))
	return tree, nil
}
