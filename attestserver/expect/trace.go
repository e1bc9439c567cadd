package expect

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"portcullis/attestserver/protocol"
)

// Trace is the twin of probe.Trace. Which keys the kernel believes is decided by
// its build and by the firmware, so that they are compared with a reference;
// which eBPF there may be is known from what runs on the image: systemd and the
// container runtime put a device and a packet filter on their control groups.
type Trace struct{ user }

// kindTrace is the sort of reference.
const kindTrace = "trace"

// Types of eBPF programs that the image's own programs load (enum bpf_prog_type):
// BPF_PROG_TYPE_CGROUP_SKB and BPF_PROG_TYPE_CGROUP_DEVICE.
var programTypes = map[uint32]string{8: "cgroup_skb", 15: "cgroup_device"}

// mapTypes are the kinds of maps that those programs use: hash, array and the
// trie of address prefixes (enum bpf_map_type).
var mapTypes = map[uint32]bool{1: true, 2: true, 11: true}

// linkCgroup is BPF_LINK_TYPE_CGROUP.
const linkCgroup = 3

// Name implements protocol.Expectation.
func (*Trace) Name() string { return protocol.OpTrace }

// Params implements protocol.Expectation.
func (*Trace) Params(io.Reader, *protocol.ImageState) ([]byte, error) { return protocol.None, nil }

// EnrolParams implements protocol.Enroller.
func (*Trace) EnrolParams(io.Reader, *protocol.ImageState) ([]byte, error) { return protocol.None, nil }

// Enrolled implements protocol.Enroller.
func (*Trace) Enrolled(st *protocol.ImageState, refs protocol.References) (bool, error) {
	_, err := refs.Get(kindTrace, hwKey(st))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// Enrol implements protocol.Enroller.
func (e *Trace) Enrol(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.TraceData
	if !j.read(in, &d) {
		return j.list
	}
	if e.bpf(j, d.Objects); len(j.list) > 0 {
		return j.list
	}
	b, err := json.Marshal(d.Keyrings)
	if err == nil {
		err = in.Refs.Put(kindTrace, hwKey(in.State), b)
	}
	if err != nil {
		j.unjudged(err)
	}
	return j.list
}

// Judge implements protocol.Expectation.
func (e *Trace) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.TraceData
	if !j.read(in, &d) {
		return j.list
	}
	e.bpf(j, d.Objects)
	if bad := d.Tainted & taintFatal; bad != 0 {
		j.fatal(ReasonTraceTainted, "tainted is %d, of which %d must not be", d.Tainted, bad)
	}
	b, err := in.Refs.Get(kindTrace, hwKey(in.State))
	var want []protocol.Keyring
	if err == nil {
		err = json.Unmarshal(b, &want)
	}
	if err != nil {
		j.unjudged(err)
		return j.list
	}
	compareKeys(j, want, d.Keyrings)
	return j.list
}

// bpf judges the eBPF objects by their types.
func (*Trace) bpf(j *judge, objects []protocol.BPFObject) {
	for _, o := range objects {
		ok := false
		switch o.Kind {
		case protocol.BPFProgram:
			ok = programTypes[o.Type] != ""
		case protocol.BPFMap:
			ok = mapTypes[o.Type]
		case protocol.BPFLink:
			ok = o.Type == linkCgroup
		}
		if !ok {
			j.fatal(ReasonBPF, "%s %d of type %d, name %q, tag %s", o.Kind, o.ID, o.Type, o.Name, o.Tag)
		}
	}
}

// compareKeys names every key that is in one list only.
func compareKeys(j *judge, want, have []protocol.Keyring) {
	list := func(rings []protocol.Keyring) (out []string) {
		for _, r := range rings {
			for _, k := range r.Keys {
				out = append(out, fmt.Sprintf("%s: %s", r.Name, k))
			}
		}
		return out
	}
	a, b := list(want), list(have)
	for _, k := range b {
		if !slices.Contains(a, k) {
			j.fatal(ReasonKeyAdded, "%s", k)
		}
	}
	for _, k := range a {
		if !slices.Contains(b, k) {
			j.fatal(ReasonKeyRemoved, "%s", k)
		}
	}
}
