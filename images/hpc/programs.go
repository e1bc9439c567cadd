package hpc

import (
	"context"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"portcullis/images/manifest"
)

var moduleLine = regexp.MustCompile(`(?m)^module portcullis$`)

func isOurModule(goMod []byte) bool { return moduleLine.Match(goMod) }

// programs sees to it that the PC's programs are there and static, and takes
// their digests.
func (b *builder) programs(ctx context.Context) error {
	want := []struct {
		name         string
		path, digest *string
		needed       bool
	}{
		{"hpc-init", &b.Binaries.Init, &b.digests.Init, true},
		{"hpc-agent", &b.Binaries.Agent, &b.digests.Agent, true},
		{"hpc-lab", &b.Binaries.Lab, &b.digests.Lab, b.Profile == manifest.ProfileLab},
	}
	for _, w := range want {
		if !w.needed {
			*w.path = ""
			continue
		}
		if *w.path == "" {
			done := b.begin("compile", w.name)
			out, err := b.compile(ctx, w.name)
			if err != nil {
				return err
			}
			*w.path = out
			done(false)
		}
		if err := checkStatic(*w.path); err != nil {
			return err
		}
		d, err := digestFile(*w.path)
		if err != nil {
			return err
		}
		*w.digest = d
	}
	return nil
}

// compile builds a program of this module for the PC, with the same bytes on
// every machine that has the same toolchain and source.
func (b *builder) compile(ctx context.Context, name string) (string, error) {
	root, err := moduleRoot()
	if err != nil {
		return "", fmt.Errorf("build %s (or name a directory with it): %w", name, err)
	}
	dir := filepath.Join(b.CacheDir, "bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	tmp, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(tmp)
	out := filepath.Join(tmp, name)
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-buildvcs=false", "-ldflags=-s -w -buildid=", "-o", out, "./cmd/"+name)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOAMD64=v1", "GOFLAGS=")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w: %s", name, err, strings.TrimSpace(string(text)))
	}
	// A build beside this one may be reading the old file.
	final := filepath.Join(dir, name)
	return final, os.Rename(out, final)
}

// checkStatic refuses a program that would need a loader or libraries: in the
// initrd there are none.
func checkStatic(path string) error {
	f, err := elf.Open(path)
	if err != nil {
		return fmt.Errorf("program %s: %w", path, err)
	}
	defer f.Close()
	if f.Machine != elf.EM_X86_64 {
		return refuse(ReasonNotStatic, "%s is for %s, the PC is x86-64", filepath.Base(path), f.Machine)
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
			return refuse(ReasonNotStatic, "%s is not static: build it with CGO_ENABLED=0", filepath.Base(path))
		}
	}
	return nil
}
