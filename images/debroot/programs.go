package debroot

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
)

// CacheEnv names the environment variable with the cache directory.
const CacheEnv = "PORTCULLIS_CACHE"

// DefaultCache returns $PORTCULLIS_CACHE, or build/cache in the module that the
// working directory is in, or portcullis in the user's cache directory.
func DefaultCache() (string, error) {
	if dir := os.Getenv(CacheEnv); dir != "" {
		return filepath.Abs(dir)
	}
	if root, err := moduleRoot(); err == nil {
		return filepath.Join(root, "build", "cache"), nil
	}
	dir, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("no place for the build cache (set %s): %w", CacheEnv, err)
	}
	return filepath.Join(dir, "portcullis"), nil
}

var moduleLine = regexp.MustCompile(`(?m)^module portcullis$`)

// moduleRoot finds the directory of the module's go.mod above the working directory.
func moduleRoot() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if b, err := os.ReadFile(filepath.Join(dir, "go.mod")); err == nil && moduleLine.Match(b) {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("not inside a checkout of the portcullis module")
		}
		dir = up
	}
}

// machines are Debian's architectures in ELF's words.
var machines = map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}

// Program returns the path of a program of ours and its hex SHA-256: built from
// source with the build tags where path is "", else the given file. It must be
// static and for arch.
func (m *Maker) Program(ctx context.Context, arch, name, path string, tags ...string) (string, string, error) {
	if path == "" {
		done := m.Begin("compile", name)
		var err error
		if path, err = m.Compile(ctx, arch, name, tags...); err != nil {
			return "", "", err
		}
		done(false)
	}
	if err := CheckStatic(path, arch); err != nil {
		return "", "", err
	}
	d, err := DigestFile(path)
	return path, d, err
}

// compilerFlags of single programs. pi-init waits for card and chip, not for itself:
// without inlined functions, of the libraries too, it is a tenth smaller.
var compilerFlags = map[string]string{"pi-init": "all=-l"}

// Compile builds a program of this module (a directory below cmd/) for a
// machine of architecture arch, with the same bytes on
// every machine that has the same toolchain and source.
func (m *Maker) Compile(ctx context.Context, arch, name string, tags ...string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", fmt.Errorf("build %s (or name a directory with it): %w", name, err)
	}
	dir := filepath.Join(m.CacheDir, "bin", arch)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-tags="+strings.Join(tags, ","), "-gcflags="+compilerFlags[name], "-o", out, "./cmd/"+name)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch, "GOAMD64=v1", "GOARM64=v8.0", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, strings.TrimSpace(string(text)))
	}
	// A build beside this one may be reading the old file.
	final := filepath.Join(dir, name)
	return final, os.Rename(out, final)
}

// CheckStatic refuses a program that is for another architecture or would need a loader or libraries: in the
// initrd there are none.
func CheckStatic(path, arch string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("program %s: %w", path, err)
	}
	defer f.Close()
	if f.Machine != machines[arch] {
		return Refuse(ReasonNotStatic, "%s is for %s, the image is for %s", filepath.Base(path), f.Machine, arch)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			return Refuse(ReasonNotStatic, "%s is not static: build it with CGO_ENABLED=0", filepath.Base(path))
		}
	}
	return nil
}
