package probe

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

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
	list := []protocol.Component{
		{Class: protocol.HwCPU, Slot: "model", Value: clean(c["vendor_id"] + " " + c["model name"])},
		{Class: protocol.HwCPU, Slot: "count", Value: fmt.Sprint(len(cpus))},
	}
	if m := c["microcode"]; m != "" {
		list = append(list, protocol.Component{Class: protocol.HwCPU, Slot: protocol.SlotMicrocode, Value: clean(m)})
	}
	return list
}

// Bits of CPUID that the operating system sets or the scheduler's choice of a
// core decides (Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E).
const (
	osXSAVE = 1 << 27 // leaf 1 ECX
	osPKE   = 1 << 4  // leaf 7 ECX
)

// cpuidComponents are the leaves that say what the CPU is. Leaf 1 EBX holds the
// number of the core and is left out, as is leaf 7 EDX, whose bits come and go
// with microcode and with the kind of core.
func cpuidComponents() (out []protocol.Component) {
	highest, _, _, _ := cpuid(0, 0)
	extended, _, _, _ := cpuid(0x80000000, 0)
	for _, l := range []struct {
		leaf           uint32
		name           string
		a, b, c, d     uint32 // masks
		lowest, behind uint32 // there when behind is at least lowest
	}{
		{0, "leaf-0", ^uint32(0), ^uint32(0), ^uint32(0), ^uint32(0), 1, highest},
		{1, "leaf-1", ^uint32(0), 0, ^uint32(osXSAVE), ^uint32(0), 1, highest},
		{7, "leaf-7", ^uint32(0), ^uint32(0), ^uint32(osPKE), 0, 7, highest},
		{0x80000001, "leaf-80000001", ^uint32(0), 0, ^uint32(0), ^uint32(0), 0x80000001, extended},
	} {
		if l.behind < l.lowest {
			continue
		}
		a, b, c, d := cpuid(l.leaf, 0)
		out = append(out, protocol.Component{Class: protocol.HwCPU, Slot: l.name,
			Value: fmt.Sprintf("%08x %08x %08x %08x", a&l.a, b&l.b, c&l.c, d&l.d)})
	}
	return out
}

// caches are those that the first CPU sees.
func (h Host) caches() (out []protocol.Component) {
	for _, d := range h.list("devices/system/cpu/cpu0/cache/index*") {
		out = append(out, protocol.Component{Class: protocol.HwCache, Slot: filepath.Base(d),
			Value: join(d, "level", "type", "size", "ways_of_associativity", "coherency_line_size", "shared_cpu_list")})
	}
	return out
}

// Bounds of one measurement of the time stamp counter.
const (
	tscSpan  = 20 * time.Millisecond  // between the two looks
	tscClose = 200 * time.Microsecond // one look may take: it lay between two readings of the clock
	tscTries = 64
)

// tsc is the rate of the time stamp counter against CLOCK_MONOTONIC_RAW, kHz. A
// look that was interrupted is taken again; on a machine that never leaves us
// alone for so long the part is left out.
func (h Host) tsc() []protocol.Component {
	khz := h.TSC()
	if khz == 0 {
		return nil
	}
	return []protocol.Component{{Class: protocol.HwTSC, Slot: protocol.SlotKHz, Value: strconv.FormatUint(khz, 10)}}
}

func tscRate() uint64 {
	c0, t0, ok := tscLook()
	if !ok {
		return 0
	}
	time.Sleep(tscSpan)
	c1, t1, ok := tscLook()
	if !ok || c1 <= c0 || t1 <= t0 {
		return 0
	}
	return (c1 - c0) * 1_000_000 / uint64(t1-t0)
}

// tscLook reads counter and clock (ns) at one moment.
func tscLook() (counter uint64, clock int64, ok bool) {
	for range tscTries {
		before := rawClock()
		counter = rdtsc()
		after := rawClock()
		if counter == 0 {
			return 0, 0, false
		}
		if time.Duration(after-before) < tscClose {
			return counter, before + (after-before)/2, true
		}
	}
	return 0, 0, false
}

func rawClock() int64 {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_MONOTONIC_RAW, &ts) != nil {
		return 0
	}
	return ts.Nano()
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
