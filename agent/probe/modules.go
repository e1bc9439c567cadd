package probe

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"portcullis/attestserver/protocol"
	"portcullis/images/modlist"
)

// Modules lists the kernel modules that are loaded, with the build id that each
// has in memory, and compares the two views that the kernel gives of them.
//
// Of the modules that the question names it reads the text through /proc/kcore.
//
// It finds a module that the image does not expect, another build of an
// expected one, a module that hides itself from one of the two lists, and changed
// code of a module.
//
// It cannot see a module that takes itself out of both, nor what a module does, nor
// a module whose code was copied and that runs elsewhere than sysfs says.
type Modules struct{ Host }

// Name implements protocol.Probe.
func (*Modules) Name() string { return protocol.OpModules }

// viewTries is how often the two views are read until they agree: modules come
// and go while they are read.
const viewTries = 3

// Run implements protocol.Probe.
func (p *Modules) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var want protocol.ModulesParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &want); err != nil {
		return protocol.Output{}, err
	}
	var d protocol.ModulesData
	for range viewTries {
		if err := alive(ctx); err != nil {
			return protocol.Output{}, err
		}
		var err error
		if d, err = p.views(); err != nil {
			return protocol.Output{}, err
		}
		if len(d.OnlyProc)+len(d.OnlySys) == 0 {
			break
		}
	}
	if err := p.texts(ctx, want.Modules, &d); err != nil {
		return protocol.Output{}, err
	}
	return answer(key, p.Name(), params, d)
}

func (p *Modules) views() (d protocol.ModulesData, err error) {
	b, err := read(p.Proc, "modules")
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without modules has no such file
		return d, err
	}
	if d.Modules, err = parseModules(b); err != nil {
		return d, err
	}
	live := map[string]bool{}
	for i := range d.Modules {
		m := &d.Modules[i]
		live[m.Name] = true
		note, err := read(p.Sys, "module", m.Name, "notes/.note.gnu.build-id")
		if err == nil {
			m.BuildID, _ = modlist.NoteBuildID(note)
		}
		if _, err := os.Stat(filepath.Join(p.Sys, "module", m.Name)); err != nil && m.State == "Live" {
			d.OnlyProc = append(d.OnlyProc, m.Name)
		}
	}
	d.OnlySys, err = p.onlySys(live)
	return d, err
}

// onlySys names what /sys/module has as a live module and /proc/modules has
// not. Only what can be unloaded has an initstate; built-in code has none.
func (p *Modules) onlySys(known map[string]bool) (out []string, err error) {
	entries, err := os.ReadDir(filepath.Join(p.Sys, "module"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		if known[e.Name()] {
			continue
		}
		if state, err := line(p.Sys, "module", e.Name(), "initstate"); err == nil && state == "live" {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// parseModules reads /proc/modules: name, size, references, users, state,
// address and, where there is any, the taint in brackets (proc(5)).
func parseModules(b []byte) ([]protocol.Module, error) {
	var out []protocol.Module
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) < 6 {
			return nil, fmt.Errorf("modules: line of %d fields", len(f))
		}
		if len(out) == protocol.MaxModules {
			return nil, fmt.Errorf("modules: more than %d", protocol.MaxModules)
		}
		m := protocol.Module{Name: f[0], State: f[4]}
		if strings.ContainsAny(m.Name, "/\x00") || m.Name == "." || m.Name == ".." {
			return nil, fmt.Errorf("modules: bad name %.64q", m.Name)
		}
		if last := f[len(f)-1]; strings.HasPrefix(last, "(") {
			m.Taint = strings.Trim(last, "()")
		}
		out = append(out, m)
	}
	return out, nil
}
