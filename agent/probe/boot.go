package probe

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// Boot tells what was booted: command line, kernel release and the kernel's ELF
// notes (its build id), lockdown, taint, whether a kexec kernel waits, and which
// kernel functions and events have a tracer on them, the security modules, and the
// programs that the kernel starts by itself.
//
// It finds another image or another command line, a kernel that was replaced by
// kexec (the notes and the boot id change), lockdown that is off, forced or
// unsigned modules (taint), kprobes, uprobes and ftrace users, a door that the
// signed kernel was built without, and another program in the place of a helper.
//
// It cannot see a kernel that lies about these files, nor a hypervisor below.
type Boot struct{ Host }

// Name implements protocol.Probe.
func (*Boot) Name() string { return protocol.OpBoot }

// Run implements protocol.Probe.
func (p *Boot) Run(_ context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	if err := protocol.CheckNone(params); err != nil {
		return protocol.Output{}, err
	}
	var d protocol.BootData
	for _, f := range []struct {
		to   *string
		name string
	}{
		{&d.Cmdline, "cmdline"}, {&d.Release, "sys/kernel/osrelease"}, {&d.BootID, "sys/kernel/random/boot_id"},
	} {
		s, err := line(p.Proc, f.name)
		if err != nil {
			return protocol.Output{}, err
		}
		*f.to = s
	}
	notes, err := read(p.Sys, "kernel/notes")
	if err != nil {
		return protocol.Output{}, err
	}
	sum := sha256.Sum256(notes)
	d.Notes = hex.EncodeToString(sum[:])
	if d.Tainted, err = number(p.Proc, "sys/kernel/tainted"); err != nil {
		return protocol.Output{}, err
	}
	kexec, err := number(p.Sys, "kernel/kexec_loaded")
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without kexec has no such file
		return protocol.Output{}, err
	}
	d.KexecLoaded = kexec != 0
	if d.Lockdown, err = p.lockdown(); err != nil {
		return protocol.Output{}, err
	}
	modules, err := p.Special("securityfs", "lsm")
	if err != nil {
		return protocol.Output{}, err
	}
	d.LSM = clean(strings.TrimSpace(string(modules)))
	d.Traced = p.traced()
	d.Doors = p.doors()
	if d.Helpers, err = p.helpers(); err != nil {
		return protocol.Output{}, err
	}
	d.UptimeMs = p.Uptime().Milliseconds()
	return answer(key, p.Name(), params, d)
}

// lockdown returns the chosen word of "none [integrity] confidentiality".
func (p *Boot) lockdown() (string, error) {
	b, err := p.Special("securityfs", "lockdown")
	if err != nil {
		return "", err
	}
	_, rest, ok := strings.Cut(string(b), "[")
	word, _, ok2 := strings.Cut(rest, "]")
	if !ok || !ok2 {
		return "", fmt.Errorf("lockdown: no choice in %.64q", b)
	}
	return word, nil
}

// doors lists which of protocol.Doors this kernel has. A file system that cannot be
// opened for another reason than that there is none counts as there.
func (p *Boot) doors() []string {
	there := func(path ...string) bool {
		_, err := os.Stat(filepath.Join(path...))
		return !errors.Is(err, fs.ErrNotExist)
	}
	mounts := func(fstype string) bool {
		_, err := p.Special(fstype, ".")
		return !errors.Is(err, unix.ENODEV)
	}
	var out []string
	for _, d := range []struct {
		name string
		open bool
	}{
		{protocol.DoorDebugfs, mounts("debugfs")},
		{protocol.DoorKexec, there(p.Sys, "kernel/kexec_loaded")},
		{protocol.DoorModules, there(p.Proc, "modules")},
		{protocol.DoorTracefs, mounts("tracefs")},
	} {
		if d.open {
			out = append(out, d.name)
		}
	}
	return out
}
