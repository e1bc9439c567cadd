package debroot

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

// Packages are the packages of one recipe, sorted by what becomes of them.
type Packages struct {
	Request  deb.Request
	Root     []deb.Package // unpacked into the root file system
	Kernel   []deb.Package
	Firmware []deb.Package // of devices: files that modules ask for
	Boot     []deb.Package // firmware of the board: files of the boot partition
	Stub     deb.Package   // UEFI stub; the zero value where the recipe has none
}

// kernelPrefixes begin the names of packages that hold kernels, modules and
// device trees. Up to trixie's own kernel all is in the first, later ones are split.
var kernelPrefixes = []string{"linux-image-", "linux-base-", "linux-binary-", "linux-modules-"}

// request returns what the recipe asks the archive for.
func request(r *recipe.Recipe, arch string) deb.Request {
	want := append([]string{r.Kernel.Package}, r.Kernel.Firmware...)
	for _, p := range []string{r.Kernel.Stub, r.Boot.Firmware} {
		if p != "" {
			want = append(want, p)
		}
	}
	want = append(want, r.Packages...)
	sort.Strings(want)
	return deb.Request{Suite: r.Suite, Arch: arch, Components: r.Components, Packages: slices.Compact(want), Backports: r.Backports}
}

// Packages resolves the packages of a recipe for an architecture in Debian's
// words: the archive's answer of the first build, until Refresh asks again. So
// a second build is the same build.
func (m *Maker) Packages(ctx context.Context, r *recipe.Recipe, arch string) (*Packages, error) {
	p := &Packages{Request: request(r, arch)}
	lock, err := m.Resolve(ctx, p.Request)
	if err != nil {
		return nil, err
	}
	return p, p.split(lock, r)
}

// Resolve answers r: what the archive said of it first, until Refresh asks again.
func (m *Maker) Resolve(ctx context.Context, r deb.Request) (*deb.Lock, error) {
	k := NewKey("lock").Add("suite", r.Suite).Add("components", r.Components).Add("packages", r.Packages).Add("arch", r.Arch).Add("backports", r.Backports)
	path := filepath.Join(m.CacheDir, "lock", k.hex()+".json")
	if data, err := os.ReadFile(path); err == nil && !m.Refresh {
		lock, err := deb.ParseLock(data)
		if err != nil {
			return nil, &Error{ReasonCacheBroken, "cached package list " + path, err}
		}
		return lock, nil
	}
	done := m.Begin("packages", "ask the archive")
	lock, err := m.Store.Resolve(ctx, r)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	tmp := path + ".new"
	if err := os.WriteFile(tmp, lock.Encode(), 0o644); err != nil {
		return nil, err
	}
	if err := os.Rename(tmp, path); err != nil {
		return nil, err
	}
	done(false)
	return lock, nil
}

// split sorts the lock by what becomes of each package.
func (p *Packages) split(lock *deb.Lock, r *recipe.Recipe) error {
	for _, d := range lock.Packages {
		switch {
		case slices.ContainsFunc(kernelPrefixes, func(s string) bool { return strings.HasPrefix(d.Name, s) }):
			p.Kernel = append(p.Kernel, d)
		case d.Name == r.Kernel.Stub:
			p.Stub = d
		case d.Name == r.Boot.Firmware:
			p.Boot = append(p.Boot, d)
		case slices.Contains(r.Kernel.Firmware, d.Name):
			p.Firmware = append(p.Firmware, d)
		case slices.Contains(r.Without, d.Name):
			if slices.Contains(r.Packages, d.Name) {
				return Refuse(ReasonOptions, "package %s is both wanted and left out by the recipe", d.Name)
			}
		default:
			p.Root = append(p.Root, d)
		}
	}
	if len(p.Kernel) == 0 || p.Stub.Name != r.Kernel.Stub || r.Boot.Firmware != "" && len(p.Boot) == 0 {
		return Refuse(ReasonMissing, "the kernel, the stub or the board's firmware is not among the resolved packages")
	}
	return nil
}

// Used are the packages that bytes of the image come from, by name.
func (p *Packages) Used() []deb.Package {
	out := slices.Concat(p.Root, p.Kernel, p.Firmware, p.Boot)
	if p.Stub.Name != "" {
		out = append(out, p.Stub)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// Fetch downloads what the store lacks.
func (m *Maker) Fetch(ctx context.Context, p *Packages) error {
	used := p.Used()
	done := m.Begin("download", fmt.Sprintf("%d packages", len(used)))
	if err := m.Store.Fetch(ctx, p.Request, &deb.Lock{Packages: used}, m.Progress.Step); err != nil {
		return err
	}
	done(false)
	return nil
}

// base unpacks the root's packages into one tar without what the recipe leaves
// out. It is the slow half of a root image and changes only with the packages.
func (m *Maker) base(ctx context.Context, p *Packages, r *recipe.Recipe) (string, error) {
	k := NewKey("base", "deb")
	for _, d := range p.Root {
		k.Add("package", d.String()+" "+d.SHA256)
	}
	k.Add("exclude", strings.Join(r.Exclude, "\n"))
	dir, _, err := m.Stage(ctx, "base", k, func(dir string) error {
		if err := m.Fetch(ctx, p); err != nil {
			return err
		}
		done := m.Begin("unpack", fmt.Sprintf("%d packages", len(p.Root)))
		defer done(false)
		return m.unpack(ctx, p.Root, r.Exclude, filepath.Join(dir, "base.tar"))
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, "base.tar"), nil
}

func (m *Maker) unpack(ctx context.Context, packages []deb.Package, exclude []string, out string) error {
	f, err := os.Create(out)
	if err != nil {
		return err
	}
	defer f.Close()
	tw := tar.NewWriter(f)
	var done, total int64
	for _, p := range packages {
		total += p.Size
	}
	for _, p := range packages {
		err := deb.Walk(ctx, m.Store.Path(p), func(h *tar.Header, r io.Reader) error {
			if excluded(exclude, h.Name) {
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
		m.Progress.Step(done, total)
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

// Base returns the unpacked packages as a tree, without what the recipe leaves
// out, and the file that its contents are in; close it when the tree is written.
func (m *Maker) Base(ctx context.Context, p *Packages, r *recipe.Recipe) (*squash.Tree, *os.File, error) {
	path, err := m.base(ctx, p, r)
	if err != nil {
		return nil, nil, err
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	tree, err := readBase(f)
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return tree, f, nil
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
