package kernel

import (
	"context"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"portcullis/images/deb"
	"portcullis/images/debroot"
	"portcullis/images/kconfig"
	"portcullis/images/recipe"
	rootfs "portcullis/rootfs/hpc"
)

// tools is what a kernel is built with; what they depend on comes along.
var tools = []string{
	"base-files", "bash", "bc", "binutils", "bison", "coreutils", "cpio", "dash", "diffutils", "findutils", "flex", "gcc-14", "grep", "gzip",
	"kmod", "libc6-dev", "libelf-dev", "libssl-dev", "make", "mawk", "perl", "sed", "tar", "xz-utils", "zstd",
}

// compiler names the one package of tools that has its version in its name.
const compiler = "gcc-14"

// flavour is the configuration of Debian's that is the base.
const flavour = "amd64_none_amd64"

// fragmentName is the file below rootfs/hpc with the differences.
const fragmentName = "kernel/hardened.config"

// inputs are all that a build depends on.
type inputs struct {
	request  deb.Request
	lock     *deb.Lock
	series   string // 6.12
	version  string // of Debian's packages: 6.12.117-1
	fragment []byte
	lines    []kconfig.Line // of the fragment
}

var versionForm = regexp.MustCompile(`^([0-9]+\.[0-9]+)\.[0-9]+[0-9a-z.+~-]*$`)

// Version returns the version of a recipe's own kernel, as it was resolved.
func Version(p *debroot.Packages) (string, error) {
	for _, k := range p.Kernel {
		if strings.HasPrefix(k.Name, "linux-image-") && versionForm.MatchString(k.Version) {
			return k.Version, nil
		}
	}
	return "", debroot.Refuse(debroot.ReasonMissing, "no kernel among the resolved packages")
}

// resolve asks for source, configuration and tools of the wanted version of the kernel.
func resolve(ctx context.Context, m *debroot.Maker, r *recipe.Recipe, version string) (*inputs, error) {
	f := versionForm.FindStringSubmatch(version)
	if f == nil {
		return nil, debroot.Refuse(ReasonVersion, "kernel version %q has no series", version)
	}
	in := &inputs{series: f[1], version: version}
	var err error
	if in.fragment, err = rootfs.FS.ReadFile(fragmentName); err != nil {
		return nil, err
	}
	if in.lines, err = kconfig.Parse(in.fragment); err != nil {
		return nil, err
	}
	packages := append([]string{"linux-source-" + in.series, "linux-config-" + in.series}, tools...)
	slices.Sort(packages)
	in.request = deb.Request{Suite: r.Suite, Arch: "amd64", Components: []string{"main"}, Packages: packages}
	if in.lock, err = m.Resolve(ctx, in.request); err != nil {
		return nil, err
	}
	for _, name := range []string{in.source(), in.config()} {
		if p, ok := in.lock.Get(name); !ok || p.Version != version {
			return nil, debroot.Refuse(ReasonVersion, "%s is of version %q, the image's kernel of %s: build both with --refresh", name, p.Version, version)
		}
	}
	return in, nil
}

// made are the packages that a kernel is made of and with: source, configuration, compiler.
func (in *inputs) made() (out []deb.Package) {
	for _, name := range []string{compiler, in.config(), in.source()} {
		if p, ok := in.lock.Get(name); ok {
			out = append(out, p)
		}
	}
	return out
}

func (in *inputs) source() string { return "linux-source-" + in.series }
func (in *inputs) config() string { return "linux-config-" + in.series }

// isTool tells whether p is unpacked for the build.
func (in *inputs) isTool(p deb.Package) bool { return p.Name != in.source() && p.Name != in.config() }

// recipeOfBuild is a number for the steps of build.go: raise it when they make other
// bytes. The package's whole code is not part of the key, for a build takes an hour.
const recipeOfBuild = "1"

func (in *inputs) key() *debroot.Key {
	k := debroot.NewKey("hardened kernel").Add("steps", recipeOfBuild).Add("fragment", string(in.fragment)).Add("flavour", flavour)
	for _, p := range in.lock.Packages {
		k.Add("package", p.String()+" "+p.SHA256)
	}
	return k
}

// stage is the directory of the cache that holds built kernels.
const stage = "hardened"

// Built is a kernel that is in the cache.
type Built struct {
	Dir     string // vmlinuz, System.map, config, release, packages.json, modules.builtin, modules.builtin.modinfo
	Version string // of Debian's packages
	Cached  bool   // it was there already

	packages []deb.Package // that bytes of it come from
}

// Release is uname -r of the hardened kernel of a version of Debian's packages.
func Release(version string) string {
	upstream, _, _ := strings.Cut(version, "-")
	return upstream + localVersion
}

// localVersion is what the fragment adds to the release.
const localVersion = "-portcullis"

// Find returns the hardened kernel that goes with the packages of a recipe, and
// refuses where it has not been built.
func Find(ctx context.Context, m *debroot.Maker, r *recipe.Recipe, p *debroot.Packages) (*Built, error) {
	version, err := Version(p)
	if err != nil {
		return nil, err
	}
	in, err := resolve(ctx, m, r, version)
	if err != nil {
		return nil, err
	}
	dir, cached, err := m.Stage(ctx, stage, in.key(), func(string) error {
		return debroot.Refuse(ReasonNotBuilt, "no hardened kernel %s in %s: run 'make kernel'", version, filepath.Join(m.CacheDir, stage))
	})
	if err != nil {
		return nil, err
	}
	return &Built{Dir: dir, Version: version, Cached: cached, packages: in.made()}, nil
}

// Own is the kernel as the image's builder takes it.
func (b *Built) Own() debroot.OwnKernel {
	return debroot.OwnKernel{Dir: b.Dir, Packages: b.packages}
}

// Summary tells of a built kernel.
type Summary struct {
	Release string `json:"release"`
	Version string `json:"version"` // of Debian's packages
	Size    int64  `json:"size"`    // bytes of vmlinuz
	SHA256  string `json:"sha256"`  // hex, of vmlinuz
	Dir     string `json:"dir"`
	Cached  bool   `json:"cached"`
}

// Summary reads what there is to tell.
func (b *Built) Summary() (Summary, error) {
	s := Summary{Release: Release(b.Version), Version: b.Version, Dir: b.Dir, Cached: b.Cached}
	file := filepath.Join(b.Dir, "vmlinuz")
	st, err := os.Stat(file)
	if err != nil {
		return s, err
	}
	s.Size = st.Size()
	s.SHA256, err = debroot.DigestFile(file)
	return s, err
}
