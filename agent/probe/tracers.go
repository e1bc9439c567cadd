package probe

import (
	"bytes"
	"fmt"
	"path"

	"portcullis/attestserver/protocol"
)

// tracers is where a kernel tells what is hooked to its functions and events by
// its own means. A kernel without a tracer has none of these files.
var tracers = []struct{ fstype, name, prefix string }{
	{"tracefs", "enabled_functions", "ftrace: "},
	{"tracefs", "kprobe_events", "kprobe: "},
	{"tracefs", "uprobe_events", "uprobe: "},
	{"tracefs", "set_event", "event: "},
	{"tracefs", "current_tracer", "tracer: "},
	{"debugfs", "kprobes/list", "kprobe: "},
}

// instanceDir holds traces beside the first one (Documentation/trace/ftrace.rst,
// "Instances"): each has events and a tracer of its own, which the files of the
// first do not tell. Drivers make some, and trace nothing there but driverEvents.
const instanceDir = "instances"

// driverEvents are those that a driver switches on by itself: qla2xxx, for Fibre Channel, its
// own words in its own instance, whenever it is loaded (qla_trace_init, Linux 5.9).
var driverEvents = map[string]string{"instances/qla2xxx/set_event": "qla:ql_dbg_log"}

// traced lists what is traced, at most protocol.MaxTraced lines.
func (p *Boot) traced() (out []string) {
	for _, f := range tracers {
		out = p.lines(out, f.fstype, f.name, f.prefix)
	}
	names, err := p.SpecialDir("tracefs", instanceDir)
	if err != nil {
		return out
	}
	if len(names) > protocol.MaxTraced && len(out) < protocol.MaxTraced {
		out = append(out, fmt.Sprintf("%d instances", len(names)))
	}
	for _, n := range names[:min(len(names), protocol.MaxTraced)] {
		dir := path.Join(instanceDir, n)
		out = p.lines(out, "tracefs", path.Join(dir, "set_event"), "event of "+dir+": ")
		out = p.lines(out, "tracefs", path.Join(dir, "current_tracer"), "tracer of "+dir+": ")
	}
	return out
}

// lines adds a file's lines that tell of something traced.
func (p *Boot) lines(out []string, fstype, name, prefix string) []string {
	b, err := p.Special(fstype, name)
	if err != nil {
		return out
	}
	for l := range bytes.Lines(b) {
		if l = bytes.TrimSpace(l); len(l) == 0 || len(out) == protocol.MaxTraced || idle(name, string(l)) {
			continue
		}
		out = append(out, clean(prefix+string(l[:min(len(l), 160)])))
	}
	return out
}

// idle tells whether a line of a file means that nobody traces anything.
func idle(name, line string) bool {
	return path.Base(name) == "current_tracer" && line == "nop" || line == driverEvents[name]
}
