package server_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"sync"
	"time"

	"portcullis/attestserver/protocol"
)

// machine is the PC: what its probes find. Expectations want "good".
type machine struct {
	mu    sync.Mutex
	facts map[string]string
	once  map[string]string
	class string
	enrol func() // called when a reference is asked for; may be nil
}

func (m *machine) set(probe, fact string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.facts[probe] = fact
}

// setOnce is for the next question only.
func (m *machine) setOnce(probe, fact string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.once[probe] = fact
}

func (m *machine) get(probe string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if f, ok := m.once[probe]; ok {
		delete(m.once, probe)
		return f
	}
	if f, ok := m.facts[probe]; ok {
		return f
	}
	return "good"
}

// stubProbe hashes a fact of the machine; "hw" names the class, "ktext" sends
// its fact whole when it is asked with parameters "enrol".
type stubProbe struct {
	name string
	m    *machine
}

func (p stubProbe) Name() string { return p.name }

func (p stubProbe) Run(_ context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	fact := p.m.get(p.name)
	switch {
	case fact == "error":
		return protocol.Output{}, errors.New("cannot read \xff")
	case fact == "panic":
		panic("as the test wants")
	}
	if d, err := time.ParseDuration(fact); err == nil {
		time.Sleep(d)
		fact = "good"
	}
	out := protocol.Output{Digest: key.Digest(p.name, params, []byte(fact))}
	switch {
	case p.name == "hw":
		p.m.mu.Lock()
		out.Data = []byte(p.m.class)
		p.m.mu.Unlock()
	case p.name == "ktext" && string(params) == "enrol":
		if p.m.enrol != nil {
			p.m.enrol()
		}
		out.Data = bytes.Repeat([]byte(fact), 1<<20)
	}
	return out, nil
}

// stubExpect is its twin.
type stubExpect struct{ name string }

func (e stubExpect) Name() string { return e.name }
func (e stubExpect) Params(r io.Reader, _ *protocol.ImageState) ([]byte, error) {
	b := make([]byte, 8)
	_, err := io.ReadFull(r, b)
	return b, err
}
func (e stubExpect) Judge(in protocol.JudgeInput) []protocol.Finding {
	for _, f := range []string{"noted", "noted too"} {
		if protocol.SameDigest(in.Output.Digest, in.Key.Digest(e.name, in.Params, []byte(f))) {
			return []protocol.Finding{{Probe: e.name, Reason: "noted", Detail: f, Class: protocol.Info}}
		}
	}
	if !protocol.SameDigest(in.Output.Digest, in.Key.Digest(e.name, in.Params, []byte("good"))) {
		return []protocol.Finding{{Probe: e.name, Reason: e.name + "-wrong", Detail: "not good", Class: protocol.Fatal}}
	}
	return nil
}

type stubClass struct{ stubExpect }

func (stubClass) CPUClass(out protocol.Output) (string, error) {
	if len(out.Data) == 0 {
		return "", errors.New("no class")
	}
	return string(out.Data), nil
}

type stubEnrol struct{ stubExpect }

func (e stubEnrol) Enrolled(st *protocol.ImageState, refs protocol.References) (bool, error) {
	r, err := refs.Open(e.name, protocol.ReferenceKey(st))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err == nil {
		r.Close()
	}
	return err == nil, err
}
func (e stubEnrol) EnrolParams(io.Reader, *protocol.ImageState) ([]byte, error) {
	return []byte("enrol"), nil
}
func (e stubEnrol) Enrol(in protocol.JudgeInput) []protocol.Finding {
	if err := in.Refs.Put(e.name, protocol.ReferenceKey(in.State), in.Output.Data); err != nil {
		return []protocol.Finding{{Probe: e.name, Reason: "enrol", Detail: err.Error(), Class: protocol.Soft}}
	}
	return nil
}

// stubRooted enrols with its second good answer.
type stubRooted struct {
	stubExpect
	good int
}

func (e *stubRooted) Settle(*protocol.ImageState, protocol.References) (protocol.Tier, bool, error) {
	e.good++
	if e.good < 2 {
		return protocol.TierSoftware, false, nil
	}
	return protocol.TierTPM, e.good == 2, nil
}
