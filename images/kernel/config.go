package kernel

import (
	"fmt"
	"slices"
	"strings"

	"portcullis/images/debroot"
	"portcullis/images/kconfig"
)

// Never are options that no hardened kernel may have, whatever a fragment says: each
// rewrites kernel text, loads code that is not the image's, or starts another kernel.
var Never = []string{
	"BPF_JIT", "DEBUG_FS", "DEVMEM", "FTRACE", "FUNCTION_TRACER", "HIBERNATION", "JUMP_LABEL", "KEXEC", "KEXEC_CORE", "KEXEC_FILE",
	"KFENCE", "KGDB", "KPROBES", "KVM", "LIVEPATCH", "MODULES", "PREEMPT_DYNAMIC", "RANDOMIZE_BASE", "TRACEPOINTS", "TRACING", "UPROBES", "XEN",
}

// Always are options without which the agent, the image or the gateway cannot do
// their work, or a hardened kernel is none.
var Always = []string{
	"BLK_DEV_DM", "BLK_DEV_LOOP", "CGROUPS", "DM_VERITY", "EFI_STUB", "IKCONFIG", "IMA", "INIT_ON_FREE_DEFAULT_ON", "LOCK_DOWN_KERNEL_FORCE_INTEGRITY",
	"NF_TABLES", "OVERLAY_FS", "PROC_KCORE", "SECCOMP_FILTER", "SQUASHFS", "STRICT_KERNEL_RWX", "TCG_TPM", "VETH", "VIRTIO_NET",
}

// Check compares the configuration that the kernel's own tools made with what was
// asked for: every line of the fragment, Always, Never, and no module. The tools drop
// silently what depends on something absent.
func Check(final, fragment []kconfig.Line) error {
	have := make(map[string]string, len(final))
	var bad []string
	for _, l := range final {
		if l.Value != kconfig.Off {
			have[l.Name] = l.Value
		}
		if l.Value == "m" {
			bad = append(bad, l.Name+" is a module")
		}
	}
	for _, l := range fragment {
		switch got, ok := have[l.Name]; {
		case l.Value == kconfig.Off && ok:
			bad = append(bad, fmt.Sprintf("%s is %s, must be off", l.Name, got))
		case l.Value != kconfig.Off && got != l.Value:
			bad = append(bad, fmt.Sprintf("%s is %q, must be %s", l.Name, got, l.Value))
		}
	}
	for _, n := range Never {
		if _, ok := have[n]; ok {
			bad = append(bad, n+" is never allowed")
		}
	}
	for _, n := range Always {
		if have[n] != "y" {
			bad = append(bad, n+" is always needed")
		}
	}
	if len(bad) == 0 {
		return nil
	}
	slices.Sort(bad)
	return debroot.Refuse(ReasonConfig, "the kernel's configuration: %s", strings.Join(slices.Compact(bad), "; "))
}
