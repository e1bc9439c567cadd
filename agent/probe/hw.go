package probe

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"portcullis/attestserver/protocol"
)

// Hw lists the machine's parts and names its CPU class: what decides how the
// kernel patches its own text at boot.
//
// It finds parts that were added, removed or exchanged since the enrolment: PCI
// and USB devices, disks, network cards, memory modules, CPUs, the board.
//
// It cannot see what the firmware or a hypervisor invents, nor parts that show
// on no bus.
type Hw struct{ Host }

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
	for _, list := range []func() []protocol.Component{
		func() []protocol.Component { return cpuComponents(cpus) },
		p.dmi, p.dimms, p.pci, p.usb, p.disks, p.nics,
	} {
		if err := alive(ctx); err != nil {
			return protocol.Output{}, err
		}
		d.Components = append(d.Components, list()...)
	}
	if len(d.Components) > protocol.MaxComponents {
		return protocol.Output{}, fmt.Errorf("%d components", len(d.Components))
	}
	slices.SortFunc(d.Components, func(a, b protocol.Component) int {
		return cmp.Or(strings.Compare(a.Class, b.Class), strings.Compare(a.Slot, b.Slot))
	})
	return answer(key, p.Name(), params, d)
}

// parseCPUInfo reads /proc/cpuinfo: one block of "key : value" lines a CPU.
func parseCPUInfo(s string) []map[string]string {
	var out []map[string]string
	for l := range strings.Lines(s) {
		k, v, ok := strings.Cut(l, ":")
		if !ok {
			continue
		}
		k, v = strings.TrimSpace(k), strings.TrimSpace(v)
		if k == "processor" {
			out = append(out, map[string]string{})
		}
		if len(out) > 0 {
			out[len(out)-1][k] = v
		}
	}
	return out
}

// cpuClass is vendor, family.model.stepping, microcode and a digest of the
// feature and bug words; "up" or "smp" says whether lock prefixes were patched out.
func cpuClass(cpus []map[string]string) string {
	c := cpus[0]
	sum := sha256.Sum256([]byte(c["flags"] + "\n" + c["bugs"]))
	mode := "smp"
	if len(cpus) == 1 {
		mode = "up"
	}
	s := strings.ToLower(fmt.Sprintf("%s-%s.%s.%s-%s-%s-%s", c["vendor_id"], c["cpu family"], c["model"], c["stepping"],
		strings.TrimPrefix(c["microcode"], "0x"), hex.EncodeToString(sum[:6]), mode))
	s = strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '.' || r == '-' {
			return r
		}
		return '-'
	}, s)
	return s[:min(len(s), 128)]
}

func cpuComponents(cpus []map[string]string) []protocol.Component {
	c := cpus[0]
	return []protocol.Component{
		{Class: protocol.HwCPU, Slot: "model", Value: clean(c["vendor_id"] + " " + c["model name"])},
		{Class: protocol.HwCPU, Slot: "count", Value: fmt.Sprint(len(cpus))},
	}
}

func (h Host) memory() (uint64, error) {
	b, err := read(h.Proc, "meminfo")
	if err != nil {
		return 0, err
	}
	var kib uint64
	if _, err := fmt.Sscanf(string(b), "MemTotal: %d kB", &kib); err != nil {
		return 0, fmt.Errorf("meminfo: %w", err)
	}
	return kib, nil
}

// dmiStrings are the strings that the kernel takes from the firmware's tables.
var dmiStrings = []string{"bios_vendor", "bios_version", "bios_date", "sys_vendor", "product_name", "product_version",
	"product_serial", "product_uuid", "product_sku", "board_vendor", "board_name", "board_version", "board_serial",
	"chassis_vendor", "chassis_type", "chassis_serial"}

func (h Host) dmi() (out []protocol.Component) {
	for _, n := range dmiStrings {
		if v := optional(h.Sys, "class/dmi/id", n); v != "" {
			out = append(out, protocol.Component{Class: protocol.HwDMI, Slot: n, Value: v})
		}
	}
	return out
}

// dimms are the memory devices, SMBIOS type 17: the whole entry by its digest,
// with part number and serial in it.
func (h Host) dimms() (out []protocol.Component) {
	for _, d := range h.list("firmware/dmi/entries/17-*") {
		b, err := read(d, "raw")
		if err != nil {
			continue
		}
		sum := sha256.Sum256(b)
		out = append(out, protocol.Component{Class: protocol.HwDIMM, Slot: filepath.Base(d), Value: hex.EncodeToString(sum[:])})
	}
	return out
}

func (h Host) pci() (out []protocol.Component) {
	for _, d := range h.list("bus/pci/devices/*") {
		out = append(out, protocol.Component{Class: protocol.HwPCI, Slot: filepath.Base(d),
			Value: join(d, "vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision")})
	}
	return out
}

func (h Host) usb() (out []protocol.Component) {
	for _, d := range h.list("bus/usb/devices/*") {
		if optional(d, "idVendor") == "" {
			continue // an interface of a device
		}
		out = append(out, protocol.Component{Class: protocol.HwUSB, Slot: filepath.Base(d),
			Value: join(d, "idVendor", "idProduct", "bcdDevice", "serial")})
	}
	return out
}

// disks are the block devices with hardware behind them.
func (h Host) disks() (out []protocol.Component) {
	for _, d := range h.list("block/*") {
		if _, err := os.Stat(filepath.Join(d, "device")); err != nil {
			continue // loop, device-mapper, RAM disk
		}
		out = append(out, protocol.Component{Class: protocol.HwBlock, Slot: filepath.Base(d),
			Value: join(d, "size", "device/vendor", "device/model", "device/serial", "serial", "wwid", "device/wwid")})
	}
	return out
}

func (h Host) nics() (out []protocol.Component) {
	links, err := h.Links()
	if err != nil {
		return nil
	}
	for _, l := range links {
		if dev := h.device(l.Name); dev != "" && l.Kind == "" {
			out = append(out, protocol.Component{Class: protocol.HwNIC, Slot: cmp.Or(l.Permanent, l.MAC), Value: dev})
		}
	}
	return out
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
