package expect

import (
	"io"
	"strings"

	"portcullis/attestserver/protocol"
	"portcullis/images/modlist"
)

// Modules is the twin of probe.Modules.
type Modules struct{ user }

// Name implements protocol.Expectation.
func (*Modules) Name() string { return protocol.OpModules }

// Params implements protocol.Expectation.
func (*Modules) Params(io.Reader, *protocol.ImageState) ([]byte, error) { return protocol.None, nil }

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
	return j.list
}
