package expect

import (
	"slices"
	"strings"

	"portcullis/attestserver/protocol"
	"portcullis/images/ktextmask"
	"portcullis/images/modlist"
)

// Modules is the twin of probe.Modules. Names, build ids and text are those of the
// image's module files; where the kernel put a module is part of the answer.
type Modules struct {
	user
	text *moduleFiles
}

// Name implements protocol.Expectation.
func (*Modules) Name() string { return protocol.OpModules }

// taintModule are the letters that only a changed system has: proprietary,
// forced, force-unloaded, staging, out of tree, unsigned, live patch, test.
const taintModule = "PFRCOEKN"

// Judge implements protocol.Expectation.
func (e *Modules) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.ModulesData
	if !j.read(in, &d) {
		return j.list
	}
	for _, m := range d.Modules {
		want, ok := e.modules[modlist.Name(m.Name)]
		switch {
		case !ok:
			j.fatal(ReasonModule, "%s is loaded", m.Name)
		case m.State == "Loading" && m.BuildID == "":
			// Its notes are not there yet; the next challenge sees them.
		case m.BuildID != want:
			j.fatal(ReasonModuleChanged, "%s has build id %q, the image's has %s", m.Name, m.BuildID, want)
		case strings.ContainsAny(m.Taint, taintModule):
			j.fatal(ReasonModuleTaint, "%s: %s", m.Name, m.Taint)
		}
	}
	for _, n := range d.OnlySys {
		j.fatal(ReasonModuleHidden, "%s is in /sys/module and not in /proc/modules", n)
	}
	for _, n := range d.OnlyProc {
		j.fatal(ReasonModuleHidden, "%s is in /proc/modules and not in /sys/module", n)
	}
	e.judgeText(j, in, &d)
	return j.list
}

// Warnings implements protocol.Warner.
func (e *Modules) Warnings(*protocol.ImageState, protocol.References) []string {
	if e.text.has() || slices.Contains(e.kernel.without, ktextmask.Modules) {
		return nil
	}
	return []string{"the text of kernel modules is not compared: the image has no list of the kernel's symbols; build it anew"}
}
