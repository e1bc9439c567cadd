package dockerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"portcullis/images/debroot"
)

// The v29 line is built from the module beside this package, which is one of its own
// so that the project's does not grow by it: v29/go.mod has the versions, v29/go.sum
// their digests.

// build is one run of the compiler: runc needs C, for what it does before Go begins.
type build struct {
	packages []string
	tags     string
	cgo      bool
}

var builds = []build{
	{packages: []string{"github.com/containerd/containerd/v2/cmd/containerd", "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
		"github.com/containerd/containerd/v2/cmd/ctr"}},
	{packages: []string{"github.com/opencontainers/runc"}, tags: "seccomp", cgo: true},
	{packages: []string{"github.com/moby/moby/v2/cmd/dockerd"}},
}

// v29 builds the engine, or finds it built.
func v29(ctx context.Context) (programs, error) {
	m, err := maker()
	if err != nil {
		return programs{}, err
	}
	top, err := goOutput(ctx, "env", "GOMOD")
	if err != nil {
		return programs{}, err
	}
	module := filepath.Join(filepath.Dir(top), "lab", "dockerd", "v29")
	k := debroot.NewKey("engine-v29").Add("go", runtime.Version()).Add("arch", runtime.GOARCH).Add("builds", builds)
	for _, name := range []string{"go.mod", "go.sum"} {
		b, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return programs{}, fmt.Errorf("it is built in the project's source: %w", err)
		}
		k.Add(name, string(b))
	}
	bin, _, err := m.Stage(ctx, "engine", k, func(dir string) error {
		for _, b := range builds {
			if err := b.run(ctx, module, dir); err != nil {
				return err
			}
		}
		return nil
	})
	return programs{bin: bin}, err
}

func (b build) run(ctx context.Context, module, out string) error {
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-tags=" + b.tags, "-o", out + "/"}, b.packages...)
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = module
	cmd.Env = append(os.Environ(), "CGO_ENABLED="+map[bool]string{true: "1", false: "0"}[b.cgo], "GOWORK=off", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		hint := ""
		if b.cgo {
			hint = " (Debian packages gcc, pkg-config and libseccomp-dev)"
		}
		return fmt.Errorf("building %s%s: %w\n%s", strings.Join(b.packages, " "), hint, err, text)
	}
	return nil
}

func goOutput(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go (Debian package golang-go): %w", err)
	}
	text := strings.TrimSpace(string(out))
	if text == "" || text == os.DevNull {
		return "", errors.New("it is built in the project's source, and this directory is not in it")
	}
	return text, nil
}
