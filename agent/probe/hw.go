package probe

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"portcullis/attestserver/protocol"
)

// Hw lists the machine's parts, which make its fingerprint, and names its CPU
// class: what decides how the kernel patches its own text at boot.
//
// It finds parts that were added, removed or exchanged since the enrolment: PCI,
// USB and Thunderbolt devices, disks, network cards, memory modules, CPUs, the
// board, the firmware.
//
// It cannot see what the firmware or a hypervisor invents, nor parts that show
// on no bus.
type Hw struct{ Host }

// FingerprintSource lists the parts of one kind. A part that is not there is
// left out; an error means that a machine of ours cannot be without it.
type FingerprintSource interface {
	Name() string // for errors
	Components(context.Context) ([]protocol.Component, error)
}

// source is a FingerprintSource made of a function that reads the host.
type source struct {
	name string
	list func() []protocol.Component
}

func (s source) Name() string { return s.name }

func (s source) Components(context.Context) ([]protocol.Component, error) { return s.list(), nil }

// sources are all that this machine's fingerprint is made of.
func (h Host) sources(cpus []map[string]string) []FingerprintSource {
	all := []FingerprintSource{
		source{protocol.HwCPU, func() []protocol.Component { return append(cpuComponents(cpus), cpuidComponents()...) }},
		source{protocol.HwDMI, h.dmi},
		source{protocol.HwDIMM, h.dimms},
		source{protocol.HwPCI, h.pci},
		source{protocol.HwUSB, h.usb},
		source{protocol.HwThunderbolt, h.thunderbolt},
		source{protocol.HwBlock, h.disks},
		source{protocol.HwNIC, h.nics},
		source{protocol.HwACPI, h.acpi},
		source{protocol.HwEFI, h.efi},
		source{protocol.HwMemmap, h.memmap},
		source{protocol.HwCache, h.caches},
		source{protocol.HwTSC, h.tsc},
	}
	if h.PUF != nil {
		all = append(all, pufSource{h.PUF})
	}
	return all
}

// Name implements protocol.Probe.
func (*Hw) Name() string { return protocol.OpHw }

// Run implements protocol.Probe.
func (p *Hw) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	if err := protocol.CheckNone(params); err != nil {
		return protocol.Output{}, err
	}
	b, err := read(p.Proc, "cpuinfo")
	if err != nil {
		return protocol.Output{}, err
	}
	cpus := parseCPUInfo(string(b))
	if len(cpus) == 0 {
		return protocol.Output{}, fmt.Errorf("cpuinfo names no processor")
	}
	var d protocol.HwData
	d.CPUClass = cpuClass(cpus)
	d.UptimeMs = p.Uptime().Milliseconds()
	if d.MemoryKiB, err = p.memory(); err != nil {
		return protocol.Output{}, err
	}
	for _, s := range p.sources(cpus) {
		if err := alive(ctx); err != nil {
			return protocol.Output{}, err
		}
		list, err := s.Components(ctx)
		if err != nil {
			return protocol.Output{}, fmt.Errorf("%s: %w", s.Name(), err)
		}
		d.Components = append(d.Components, list...)
	}
	if len(d.Components) > protocol.MaxComponents {
		return protocol.Output{}, fmt.Errorf("%d components", len(d.Components))
	}
	sortComponents(d.Components)
	return answer(key, p.Name(), params, d)
}

func sortComponents(list []protocol.Component) {
	slices.SortFunc(list, func(a, b protocol.Component) int {
		return cmp.Or(strings.Compare(a.Class, b.Class), strings.Compare(a.Slot, b.Slot))
	})
}

func (h Host) list(pattern string) []string {
	l, _ := filepath.Glob(filepath.Join(h.Sys, pattern)) // the patterns are constant and valid
	return l[:min(len(l), protocol.MaxComponents)]
}

func join(dir string, names ...string) string {
	v := make([]string, len(names))
	for i, n := range names {
		v[i] = optional(dir, n)
	}
	return strings.TrimSpace(strings.Join(v, " "))
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}
