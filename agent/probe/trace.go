package probe

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"portcullis/attestserver/protocol"
)

// Trace lists what changes the kernel's behaviour and leaves its code alone:
// eBPF programs, links and maps by the kernel's own numbering, and the keys that
// the kernel believes when it loads modules and kernels. What op boot lists
// (ftrace, kprobes, uprobes, tracepoints) is not repeated.
//
// It finds an eBPF program of a kind that the image has no use for (a tracer, a
// socket filter, a traffic or XDP hook, a security hook), wherever it is attached
// and also when no file or process holds it, and a key that was added.
//
// It cannot see a program that was loaded, ran and was removed between two
// challenges, what a program of an expected kind does, nor an object that the
// kernel hides from bpf(2).
type Trace struct{ Host }

// Name implements protocol.Probe.
func (*Trace) Name() string { return protocol.OpTrace }

// At its start systemd loads programs of other kinds for a moment, to learn what the
// kernel can. What is gone after this time is not told.
const (
	lastingTries = 4
	lastingWait  = 250 * time.Millisecond
)

// usualPrograms are what systemd and the container runtime leave loaded:
// BPF_PROG_TYPE_CGROUP_SKB and BPF_PROG_TYPE_CGROUP_DEVICE.
var usualPrograms = map[uint32]bool{8: true, 15: true}

// lasting lists the eBPF objects; where there are unusual ones, those that stay.
func (p *Trace) lasting(ctx context.Context) ([]protocol.BPFObject, error) {
	list, err := p.BPF()
	for try := 0; err == nil && try < lastingTries; try++ {
		if !slices.ContainsFunc(list, func(o protocol.BPFObject) bool { return o.Kind == protocol.BPFProgram && !usualPrograms[o.Type] }) {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(lastingWait):
		}
		before := list
		if list, err = p.BPF(); err == nil {
			list = slices.DeleteFunc(list, func(o protocol.BPFObject) bool {
				return !slices.ContainsFunc(before, func(b protocol.BPFObject) bool { return b.Kind == o.Kind && b.ID == o.ID })
			})
		}
	}
	return list, err
}

// Run implements protocol.Probe.
func (p *Trace) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	if err := protocol.CheckNone(params); err != nil {
		return protocol.Output{}, err
	}
	var d protocol.TraceData
	var err error
	if d.Tainted, err = number(p.Proc, "sys/kernel/tainted"); err != nil {
		return protocol.Output{}, err
	}
	if d.Objects, err = p.lasting(ctx); err != nil {
		return protocol.Output{}, err
	}
	if len(d.Objects) > protocol.MaxBPFObjects {
		return protocol.Output{}, fmt.Errorf("%d eBPF objects", len(d.Objects))
	}
	if err := alive(ctx); err != nil {
		return protocol.Output{}, err
	}
	slices.SortFunc(d.Objects, func(a, b protocol.BPFObject) int {
		return cmp.Or(strings.Compare(a.Kind, b.Kind), cmp.Compare(a.ID, b.ID))
	})
	b, err := read(p.Proc, "keys")
	if err != nil {
		return protocol.Output{}, err
	}
	for _, k := range parseKeyrings(b) {
		keys, err := p.Keys(k.serial)
		if err != nil {
			return protocol.Output{}, fmt.Errorf("keyring %s: %w", k.name, err)
		}
		slices.Sort(keys)
		d.Keyrings = append(d.Keyrings, protocol.Keyring{Name: k.name, Keys: keys})
	}
	slices.SortFunc(d.Keyrings, func(a, b protocol.Keyring) int { return strings.Compare(a.Name, b.Name) })
	return answer(key, p.Name(), params, d)
}

// trustRings are the keyrings whose keys the kernel believes.
var trustRings = []string{".builtin_trusted_keys", ".secondary_trusted_keys", ".machine", ".platform", ".ima", ".evm"}

type keyring struct {
	name   string
	serial int
}

// parseKeyrings finds the keyrings of trust in /proc/keys (proc_keys(5)): serial,
// flags, usage, timeout, permissions, uid, gid, type, description.
func parseKeyrings(b []byte) (out []keyring) {
	for l := range strings.Lines(string(b)) {
		f := strings.Fields(l)
		if len(f) < 9 || f[7] != "keyring" {
			continue
		}
		name := strings.TrimSuffix(f[8], ":")
		var serial int
		if _, err := fmt.Sscanf(f[0], "%x", &serial); err != nil || !slices.Contains(trustRings, name) || f[5] != "0" && f[5] != "65534" {
			continue
		}
		if len(out) < protocol.MaxKeyrings {
			out = append(out, keyring{name, serial})
		}
	}
	return out
}

// describedKey keeps type and description of "type;uid;gid;perm;description".
func describedKey(s string) string {
	f := strings.SplitN(s, ";", 5)
	if len(f) != 5 {
		return s
	}
	return f[0] + ";" + f[4]
}
