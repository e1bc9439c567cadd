package ktextmask

import (
	"fmt"
	"slices"

	"portcullis/images/kconfig"
)

// Options of the kernel's configuration that decide what can be patched, or which
// doors there are to look through. A kernel that does not carry its configuration,
// as Debian's, is taken for one that has them all: its tables are then looked for, and
// a table that is not found is an error.
const (
	BPFJIT         = "BPF_JIT"
	DebugFS        = "DEBUG_FS"
	Ftrace         = "FTRACE"
	JumpLabels     = "JUMP_LABEL"
	Kexec          = "KEXEC_CORE"
	Kprobes        = "KPROBES"
	KVM            = "KVM"
	Modules        = "MODULES"
	PreemptDynamic = "PREEMPT_DYNAMIC"
	Tracepoints    = "TRACEPOINTS"
	Xen            = "XEN"
)

var options = []string{BPFJIT, DebugFS, Ftrace, JumpLabels, Kexec, Kprobes, KVM, Modules, PreemptDynamic, Tracepoints, Xen}

// absent lists which of options the kernel says that it has not, sorted.
func (k *kernel) absent() ([]string, error) {
	lines, found, err := kconfig.Embedded(k.sections[".rodata"].data)
	if err != nil || !found {
		return nil, err
	}
	var out []string
	for _, o := range options {
		if i := slices.IndexFunc(lines, func(l kconfig.Line) bool { return l.Name == o }); i < 0 || lines[i].Value == kconfig.Off {
			out = append(out, o)
		}
	}
	slices.Sort(out)
	return out, nil
}

// Has tells whether the kernel has an option.
func (m *Mask) Has(option string) bool { return !slices.Contains(m.Without, option) }

// callsSettle tells whether static calls are decided at boot for good: whoever
// updates them later is a module, a tracepoint, the choice of the preemption model or
// a hypervisor.
func (m *Mask) callsSettle() bool {
	return !slices.ContainsFunc([]string{Modules, Tracepoints, PreemptDynamic, KVM, Xen, JumpLabels}, m.Has)
}

// checkWithout refuses a list that absent does not make.
func checkWithout(list []string) error {
	for i, o := range list {
		if !slices.Contains(options, o) || i > 0 && list[i-1] >= o {
			return fmt.Errorf("option %.40q is unknown or out of order", o)
		}
	}
	return nil
}
