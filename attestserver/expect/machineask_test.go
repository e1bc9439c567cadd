package expect_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"math/rand/v2"

	"portcullis/attestserver/protocol"
)

// keys makes another key for every question.
var keys byte

func (m *machine) input(op string, enrol bool) protocol.JudgeInput {
	m.t.Helper()
	in := m.ask(op, enrol)
	out, err := m.probes[op].Run(context.Background(), in.Key, in.Params)
	if err != nil {
		m.t.Fatalf("%s: %v", op, err)
	}
	in.Output = out
	return in
}

func (m *machine) ask(op string, enrol bool) protocol.JudgeInput {
	m.t.Helper()
	keys++
	in := protocol.JudgeInput{Key: sha256.Sum256([]byte{keys}), State: m.state, Refs: m.refs}
	var err error
	r := rand.NewChaCha8(in.Key)
	if enrol {
		in.Params, err = m.twins[op].(protocol.Enroller).EnrolParams(r, m.state)
	} else {
		in.Params, err = m.twins[op].Params(r, m.state)
	}
	m.check(err)
	return in
}

// judge runs one op from end to end.
func (m *machine) judge(op string) []protocol.Finding {
	m.t.Helper()
	return m.twins[op].Judge(m.input(op, false))
}

// enrol takes the references of an honest machine.
func (m *machine) enrol() {
	m.t.Helper()
	for _, op := range []string{protocol.OpHw, protocol.OpKtext, protocol.OpKrodata, protocol.OpTrace} {
		if f := m.twins[op].(protocol.Enroller).Enrol(m.input(op, true)); len(f) > 0 {
			m.t.Fatalf("enrolment of %s: %+v", op, f)
		}
	}
}

// wants fails unless a finding with reason and detail is among list.
func (m *machine) wants(list []protocol.Finding, class protocol.Class, reason, detail string) {
	m.t.Helper()
	for _, f := range list {
		if f.Reason == reason && f.Class == class && bytes.Contains([]byte(f.Detail), []byte(detail)) {
			return
		}
	}
	m.t.Errorf("no %s finding %s that names %q in %+v", class, reason, detail, list)
}

// wantsNone fails where an op finds anything.
func (m *machine) wantsNone(op string) {
	m.t.Helper()
	if f := m.judge(op); len(f) > 0 {
		m.t.Fatalf("%s: %+v", op, f)
	}
}
