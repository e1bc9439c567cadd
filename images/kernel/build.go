package kernel

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/mail"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/ulikunitz/xz"

	"portcullis/images/deb"
	"portcullis/images/debroot"
	"portcullis/images/kconfig"
	"portcullis/images/manifest"
	"portcullis/images/recipe"
	rootfs "portcullis/rootfs/hpc"
)

// Options of one build.
type Options struct {
	CacheDir string // "" = debroot.DefaultCache()
	Place    string // absolute directory of the source inside the build; "" = /build. The kernel does not depend on it
	Jobs     int    // compilers at a time; 0 = 1
	Nice     int    // 0 to 19: how far the build stands back behind other work
	Anew     bool   // build although the cache has it, and refuse other bytes
	Refresh  bool   // ask the archive for newer packages
	Progress debroot.Progress
}

// Build makes the hardened kernel for the image of real PCs, or finds it in the cache.
func Build(ctx context.Context, o Options) (*Built, error) {
	if o.Place == "" {
		o.Place = "/build"
	}
	if !path.IsAbs(o.Place) || path.Clean(o.Place) != o.Place || o.Jobs < 0 || o.Nice < 0 || o.Nice > 19 {
		return nil, debroot.Refuse(debroot.ReasonOptions, "place %q, %d jobs or nice %d is out of range", o.Place, o.Jobs, o.Nice)
	}
	if o.CacheDir == "" {
		dir, err := debroot.DefaultCache()
		if err != nil {
			return nil, err
		}
		o.CacheDir = dir
	}
	return debroot.Retry(o.Refresh, func(refresh bool) (*Built, error) {
		m, err := debroot.NewMaker(o.CacheDir, o.Progress, refresh)
		if err != nil {
			return nil, err
		}
		return build(ctx, m, o)
	})
}

func build(ctx context.Context, m *debroot.Maker, o Options) (*Built, error) {
	r, err := recipe.Load(recipe.Builtin{Name: "hpc", FS: rootfs.FS, Entry: manifest.ProfileGeneric + ".yaml"}, "")
	if err != nil {
		return nil, err
	}
	p, err := m.Packages(ctx, r, "amd64")
	if err != nil {
		return nil, err
	}
	version, err := Version(p)
	if err != nil {
		return nil, err
	}
	in, err := resolve(ctx, m, r, version)
	if err != nil {
		return nil, err
	}
	dir, cached, err := m.Stage(ctx, stage, in.key(), func(dir string) error { return in.make(ctx, m, o, dir) })
	if err != nil {
		return nil, err
	}
	if cached && o.Anew {
		if err := in.again(ctx, m, o, dir); err != nil {
			return nil, err
		}
	}
	return &Built{Dir: dir, Version: version, Cached: cached && !o.Anew}, m.Prune(stage)
}

// again builds beside what the cache has and compares.
func (in *inputs) again(ctx context.Context, m *debroot.Maker, o Options, first string) error {
	dir, err := os.MkdirTemp(m.CacheDir, "kernel-again-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := in.make(ctx, m, o, dir); err != nil {
		return err
	}
	for _, name := range results {
		a, err := debroot.DigestFile(filepath.Join(first, name))
		if err != nil {
			return err
		}
		b, err := debroot.DigestFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if a != b {
			return debroot.Refuse(ReasonFailed, "%s has digest %s, and %s when it is built again", name, a, b)
		}
	}
	return nil
}

// results are the files of a built kernel that must be the same each time.
var results = []string{"vmlinuz", "System.map", "config", "modules.builtin", "modules.builtin.modinfo", "release"}

// from is where each of them is in the source's directory.
var from = map[string]string{
	"vmlinuz": "arch/x86/boot/bzImage", "System.map": "System.map", "config": ".config", "modules.builtin": "modules.builtin",
	"modules.builtin.modinfo": "modules.builtin.modinfo", "release": "include/config/kernel.release",
}

// make fills dir with a kernel.
func (in *inputs) make(ctx context.Context, m *debroot.Maker, o Options, dir string) error {
	if os.Geteuid() != 0 {
		return debroot.Refuse(ReasonRoot, "building a kernel needs root: its tools run in a root directory of their own")
	}
	if err := in.fetch(ctx, m); err != nil {
		return err
	}
	// One build at a time: what one that was killed left behind the next one removes.
	room := filepath.Join(m.CacheDir, "kernel-room")
	unlock, err := deb.FileLock(ctx, room+".lock")
	if err != nil {
		return err
	}
	defer unlock()
	r, err := newRoom(room)
	if err != nil {
		return err
	}
	defer r.close()
	done := m.Begin("tools", fmt.Sprintf("%d packages", len(in.lock.Packages)-2))
	var list []deb.Package
	for _, p := range in.lock.Packages {
		if in.isTool(p) {
			list = append(list, p)
		}
	}
	if err := r.unpack(ctx, m.Store, list, m.Progress.Step); err != nil {
		return err
	}
	if err := r.furnish(); err != nil {
		return err
	}
	done(false)
	return in.compile(ctx, m, r, o, dir)
}

func (in *inputs) fetch(ctx context.Context, m *debroot.Maker) error {
	done := m.Begin("download", fmt.Sprintf("%d packages", len(in.lock.Packages)))
	if err := m.Store.Fetch(ctx, in.request, in.lock, m.Progress.Step); err != nil {
		return err
	}
	done(false)
	return nil
}

// objects is about how many lines a build writes; the progress is a guess.
const objects = 3300

func (in *inputs) compile(ctx context.Context, m *debroot.Maker, r *room, o Options, dir string) error {
	base, stamp, err := in.read(ctx, m, r)
	if err != nil {
		return err
	}
	if err := r.mkdir(o.Place); err != nil {
		return err
	}
	env := environment(stamp)
	done := m.Begin("source", in.source())
	if err := r.run(ctx, o.Place, env, nil, "/usr/bin/tar", "-xf", sourceTar); err != nil {
		return err
	}
	done(false)
	source := path.Join(o.Place, in.source())
	config := filepath.Join(r.dir, source, ".config")
	if err := os.WriteFile(config, kconfig.Merge(base, in.lines), 0o644); err != nil {
		return err
	}
	if err := os.Chown(config, nobody, nobody); err != nil {
		return err
	}
	if err := r.run(ctx, source, env, nil, "/usr/bin/make", "olddefconfig"); err != nil {
		return err
	}
	text, err := os.ReadFile(config)
	if err != nil {
		return err
	}
	final, err := kconfig.Parse(text)
	if err != nil {
		return err
	}
	if err := Check(final, in.lines); err != nil {
		return err
	}
	done = m.Begin("compile", Release(in.version))
	n := int64(0)
	line := func(string) { n++; m.Progress.Step(min(n, objects-1), objects) }
	if err := r.run(ctx, source, env, line, "/usr/bin/nice", "-n", strconv.Itoa(o.Nice), "/usr/bin/make", "-j", strconv.Itoa(max(o.Jobs, 1)), "bzImage"); err != nil {
		return err
	}
	done(false)
	return in.collect(filepath.Join(r.dir, source), dir)
}

// environment is all that the build knows of its surroundings: stamp is the date of
// the source package, as for Debian's own kernels.
func environment(stamp string) []string {
	return []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC0", "HOME=/tmp", "KBUILD_BUILD_TIMESTAMP=" + stamp,
		"KBUILD_BUILD_USER=portcullis", "KBUILD_BUILD_HOST=portcullis", "KBUILD_BUILD_VERSION=1",
	}
}

// collect copies the results and says what they were made of.
func (in *inputs) collect(source, dir string) error {
	for _, name := range results {
		if err := debroot.CopyFile(filepath.Join(dir, name), filepath.Join(source, from[name]), 0o644); err != nil {
			return err
		}
	}
	release, err := os.ReadFile(filepath.Join(dir, "release"))
	if err != nil {
		return err
	}
	if have := strings.TrimSpace(string(release)); have != Release(in.version) {
		return debroot.Refuse(ReasonFailed, "the kernel calls itself %q, not %q", have, Release(in.version))
	}
	return os.WriteFile(filepath.Join(dir, "packages.json"), in.lock.Encode(), 0o644)
}

// Files inside the packages, and where the source's archive is put in the room.
const (
	sourceTar  = "/source.tar.xz"
	maxSource  = 1 << 30
	maxChanges = 16 << 20
)

// read takes Debian's configuration and the date of the source out of their packages,
// and puts the source's archive into the room.
func (in *inputs) read(ctx context.Context, m *debroot.Maker, r *room) (base []kconfig.Line, stamp string, err error) {
	want := map[string]func(io.Reader) error{
		"/usr/src/" + in.source() + ".tar.xz": func(from io.Reader) error {
			f, err := r.root.Create(strings.TrimPrefix(sourceTar, "/"))
			if err != nil {
				return err
			}
			if _, err := io.Copy(f, io.LimitReader(from, maxSource)); err != nil {
				f.Close()
				return err
			}
			return f.Close()
		},
		"/usr/share/doc/" + in.source() + "/changelog.Debian.gz": func(from io.Reader) (err error) {
			stamp, err = changelogDate(from)
			return err
		},
		"/usr/src/" + in.config() + "/config." + flavour + ".xz": func(from io.Reader) error {
			x, err := xz.NewReader(from)
			if err != nil {
				return err
			}
			text, err := io.ReadAll(io.LimitReader(x, kconfig.Max+1))
			if err == nil {
				base, err = kconfig.Parse(text)
			}
			return err
		},
	}
	for _, name := range []string{in.source(), in.config()} {
		p, _ := in.lock.Get(name)
		err := deb.Walk(ctx, m.Store.Path(p), func(h *tar.Header, from io.Reader) error {
			do := want[h.Name]
			if do == nil {
				return nil
			}
			delete(want, h.Name)
			return do(from)
		})
		if err != nil {
			return nil, "", err
		}
	}
	for name := range want {
		return nil, "", debroot.Refuse(debroot.ReasonMissing, "%s is in no package", name)
	}
	return base, stamp, nil
}

// changelogDate returns the date of the newest entry of a packed debian/changelog:
// the first line " -- Name <address>  date" (deb-changelog(5)).
func changelogDate(packed io.Reader) (string, error) {
	z, err := gzip.NewReader(packed)
	if err != nil {
		return "", fmt.Errorf("changelog: %w", err)
	}
	for s := bufio.NewScanner(io.LimitReader(z, maxChanges)); s.Scan(); {
		who, date, ok := strings.Cut(s.Text(), ">  ")
		if !ok || !strings.HasPrefix(who, " -- ") {
			continue
		}
		if _, err := mail.ParseDate(date); err != nil {
			return "", fmt.Errorf("changelog: %w", err)
		}
		return date, nil
	}
	return "", fmt.Errorf("changelog: no entry is dated in its first %d bytes", maxChanges)
}
