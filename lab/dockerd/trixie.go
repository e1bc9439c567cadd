package dockerd

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"portcullis/images/deb"
	"portcullis/images/debroot"
)

// trixieRequest is Debian 13's engine with what its start needs.
var trixieRequest = deb.Request{Suite: "trixie", Arch: runtime.GOARCH, Components: []string{"main"},
	Packages: []string{"base-files", "containerd", "coreutils", "dash", "docker.io", "mount", "runc"}}

// unpacked is part of the key of the root directory: raise it when other bytes are made.
const unpacked = 2

// trixie makes a root directory of the files of Debian 13's packages. It is entered,
// because the programs need that Debian's libraries; no maintainer script runs.
func trixie(ctx context.Context) (programs, error) {
	m, err := maker()
	if err != nil {
		return programs{}, err
	}
	lock, err := m.Resolve(ctx, trixieRequest)
	if err != nil {
		return programs{}, err
	}
	k := debroot.NewKey("engine-trixie").Add("packages", string(lock.Encode())).Add("unpacked", unpacked)
	root, _, err := m.Stage(ctx, "engine", k, func(dir string) error {
		if err := m.Store.Fetch(ctx, trixieRequest, lock, nil); err != nil {
			return err
		}
		return unpackRoot(ctx, m.Store, lock, dir)
	})
	return programs{root: root}, err
}

func maker() (*debroot.Maker, error) {
	cache, err := debroot.DefaultCache()
	if err != nil {
		return nil, err
	}
	return debroot.NewMaker(cache, nil, false)
}

// unpackRoot unpacks packages, base-files first because it has the links /bin and /lib,
// and makes what scripts of packages would have made and tests ask for.
func unpackRoot(ctx context.Context, store *deb.Store, lock *deb.Lock, dir string) error {
	tool, err := deb.NeedTool("dpkg-deb", "dpkg")
	if err != nil {
		return err
	}
	first, ok := lock.Get("base-files")
	if !ok {
		return fmt.Errorf("no base-files among %d packages", len(lock.Packages))
	}
	for _, p := range append([]deb.Package{first}, lock.Packages...) {
		if out, err := exec.CommandContext(ctx, tool, "-x", store.Path(p), dir).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", p.Name, err, strings.TrimSpace(string(out)))
		}
	}
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "mnt", "root", "etc/ssl/certs"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{"passwd": "root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n", "group": "root:x:0:\nnogroup:x:65534:\n",
		"subuid": "", "subgid": ""} {
		if err := os.WriteFile(filepath.Join(dir, "etc", name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}
