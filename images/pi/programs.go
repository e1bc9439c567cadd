package pi

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"portcullis/images/debroot"
)

// program is one of ours in the image.
type program struct {
	name   string
	place  string // in the root file system; "" = /init of the initramfs
	path   string // on this machine
	digest string // hex SHA-256

	dynamic bool // needs the system's loader and C library
}

// applianceTag leaves out of the portcullis program what only an operator's own
// machine needs: the lab, the builders of images.
const applianceTag = "appliance"

// initProgram is the one that the initramfs starts.
const initProgram = "pi-init"

// ourPrograms go into every image.
var ourPrograms = []program{
	{name: initProgram},
	{name: "attestd", place: "/usr/lib/portcullis/attestd"},
	{name: "gatewayd", place: "/usr/lib/portcullis/gatewayd"},
	{name: "pxed", place: "/usr/lib/portcullis/pxed"},
	{name: "verifierd", place: "/usr/lib/portcullis/verifierd"},
	// The engine's runtime: /etc/docker/daemon.json.
	{name: "runc-gate", place: "/usr/lib/portcullis/runc-gate"},
	{name: "portcullis", place: "/usr/bin/portcullis"},
}

// labProgram is the guest's end of the lab's command channel.
var labProgram = program{name: "hpc-lab", place: debroot.LabPath}

// compile sees to it that the Pi's programs are there and static.
func (b *builder) compile(ctx context.Context) error {
	b.programs = append(b.programs, ourPrograms...)
	if b.lab() {
		b.programs = append(b.programs, labProgram)
	}
	if b.zymbitd() {
		b.programs = append(b.programs, zymbitProgram)
	}
	for i := range b.programs {
		p := &b.programs[i]
		if b.o.Bin != "" {
			if path := filepath.Join(b.o.Bin, p.name); exists(path) {
				p.path = path
			}
		}
		var err error
		if p.dynamic {
			err = b.dynamic(ctx, p)
		} else {
			p.path, p.digest, err = b.m.Program(ctx, arch, p.name, p.path, applianceTag)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// dynamic compiles a program that is linked to the C library of the image.
func (b *builder) dynamic(ctx context.Context, p *program) (err error) {
	if p.path == "" {
		done := b.m.Begin("compile", p.name)
		if p.path, err = b.m.Compile(ctx, arch, p.name, applianceTag); err != nil {
			return err
		}
		done(false)
	}
	p.digest, err = debroot.DigestFile(p.path)
	return err
}

// CompilePrograms makes what Options.Bin takes, the lab's program with it, below dir, and
// returns the directory: who builds several images of one state of the source compiles once.
func CompilePrograms(ctx context.Context, dir string, progress debroot.Progress) (string, error) {
	m, err := debroot.NewMaker(dir, progress, false)
	if err != nil {
		return "", err
	}
	for _, p := range append(slices.Clone(ourPrograms), labProgram) {
		path, _, err := m.Program(ctx, arch, p.name, "", applianceTag)
		if err != nil {
			return "", err
		}
		dir = filepath.Dir(path)
	}
	return dir, nil
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func (b *builder) program(name string) program {
	for _, p := range b.programs {
		if p.name == name {
			return p
		}
	}
	panic("pi: no program " + name)
}
