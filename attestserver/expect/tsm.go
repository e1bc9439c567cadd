package expect

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"time"

	"portcullis/attestserver/protocol"
	"portcullis/attestserver/teequote"
)

// Tsm is the twin of probe.Tsm and what tier T2 rests on: a report that the
// processor's maker vouches for, bound to this question. What was measured at the
// launch is pinned for each image on its first boot; nothing predicts it. A machine
// that was enrolled must stay one; one that never was is not complained about.
type Tsm struct{ user }

// Name implements protocol.Expectation.
func (*Tsm) Name() string { return protocol.OpTsm }

// Params implements protocol.Expectation.
func (*Tsm) Params(r io.Reader, st *protocol.ImageState) ([]byte, error) {
	nonce, err := draw(r, 32)
	if err != nil {
		return nil, err
	}
	return protocol.EncodeOp(protocol.TsmParams{Session: st.Session, Nonce: nonce})
}

// kindTsm is the sort of reference; its key is that of tpmKey.
const kindTsm = "tsm"

type tsmReference struct {
	Version      int               `json:"version"` // 1
	Provider     string            `json:"provider"`
	Measurements map[string]string `json:"measurements"` // image digest → what was measured
}

// tsmNote is the last answer of the session.
type tsmNote struct {
	Good        bool
	Provider    string
	Measurement string
	Said        bool
}

// Judge implements protocol.Expectation.
func (e *Tsm) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.TsmData
	if !j.read(in, &d) {
		return j.list
	}
	ref, err := readTsm(in.Refs, in.State)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		j.unjudged(err)
		return j.list
	}
	s := readTsmNote(in.State)
	s.Good = false
	s.judge(j, in, ref, &d)
	in.State.Keep(protocol.OpTsm, s)
	return j.list
}

func (s *tsmNote) judge(j *judge, in protocol.JudgeInput, ref *tsmReference, d *protocol.TsmData) {
	if !d.Present || d.Fault != "" {
		switch {
		case ref != nil && !d.Present:
			j.fatal(ReasonTsmMissing, "this was a confidential machine (%s), and says it is none", ref.Provider)
		case ref != nil:
			j.add(protocol.Soft, ReasonTsmFault, "no report: %.200q", d.Fault)
		case d.Present:
			s.once(j, "no report: %.200q", d.Fault)
		}
		return
	}
	claims, err := teequote.Verify(teequote.Evidence{Provider: d.Provider, Report: d.Report, Certs: d.Certs}, time.Now())
	if err == nil && claims.Data != in.Key.ReportData(in.Params) {
		err = errors.New("made for another question")
	}
	if err == nil && claims.Debug {
		err = errors.New("the host may read this machine's memory: its debug bit is set")
	}
	if err != nil {
		if ref != nil {
			j.fatal(ReasonTsmReport, "%v", err)
		} else {
			s.once(j, "%v", err)
		}
		return
	}
	s.Provider, s.Measurement = d.Provider, hex.EncodeToString(claims.Measurement[:])
	switch {
	case ref != nil && ref.Provider != s.Provider:
		j.fatal(ReasonTsmReport, "a report of %s, enrolled is %s", plain(s.Provider), ref.Provider)
	case ref != nil && ref.Measurements[imageName(in.State)] != "" && ref.Measurements[imageName(in.State)] != s.Measurement:
		j.fatal(ReasonTsmMeasurement, "launched as %.16s, enrolled for this image is %.16s", s.Measurement, ref.Measurements[imageName(in.State)])
	default:
		s.Good = true
	}
}

func (s *tsmNote) once(j *judge, format string, args ...any) {
	if !s.Said {
		j.add(protocol.Info, ReasonTsmUnusable, format, args...)
		s.Said = true
	}
}

// Settle implements protocol.Rooted.
func (e *Tsm) Settle(st *protocol.ImageState, refs protocol.References) (protocol.Tier, bool, error) {
	s := readTsmNote(st)
	if !s.Good {
		return protocol.TierSoftware, false, nil
	}
	ref, err := readTsm(refs, st)
	if errors.Is(err, fs.ErrNotExist) {
		ref, err = &tsmReference{Version: 1, Provider: s.Provider, Measurements: map[string]string{}}, nil
	}
	if err != nil {
		return protocol.TierSoftware, false, err
	}
	if ref.Measurements[imageName(st)] != "" {
		return protocol.TierTEE, false, nil
	}
	ref.Measurements[imageName(st)] = s.Measurement
	b, err := json.MarshalIndent(ref, "", "  ")
	if err == nil {
		err = refs.Put(kindTsm, tpmKey(st), b)
	}
	if err != nil {
		return protocol.TierSoftware, false, fmt.Errorf("TEE reference: %w", err)
	}
	return protocol.TierTEE, true, nil
}

func imageName(st *protocol.ImageState) string { return hex.EncodeToString(st.Image.Digest[:16]) }

func readTsm(refs protocol.References, st *protocol.ImageState) (*tsmReference, error) {
	b, err := refs.Get(kindTsm, tpmKey(st))
	if err != nil {
		return nil, err
	}
	r := new(tsmReference)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("TEE reference: %w", err)
	}
	if r.Version != 1 || r.Measurements == nil {
		return nil, fmt.Errorf("TEE reference: version %d", r.Version)
	}
	return r, nil
}

// readTsmNote returns a copy that may be changed.
func readTsmNote(st *protocol.ImageState) *tsmNote {
	s, _ := st.Kept[protocol.OpTsm].(*tsmNote)
	if s == nil {
		return new(tsmNote)
	}
	own := *s
	return &own
}
