package result

import (
	"time"

	"portcullis/attestserver/protocol"
	"portcullis/attestserver/verdict"
)

// Facts are what a result is built of.
type Facts struct {
	Now     time.Time
	Life    time.Duration // of a result that is not trust; of trust the verdict has its own end
	Verdict verdict.Verdict
	PC      string // its name, where attestd serves several
	Posture string // of the Pi
	Policy  string // names the policy that the verdict was judged by

	Image        string
	ImageVersion uint64
	LabImage     bool

	Nonce      []byte
	Context    string
	Asked      *Asked
	LogOrigin  string
	LogEntries int64
}

// means are the tiers in words, as the design has them.
var means = map[protocol.Tier]string{
	protocol.TierSoftware: "software only: a machine on this port, continuously connected since it was netbooted, answers as the image on the enrolled hardware would",
	protocol.TierTPM:      "with the PC's TPM: quote, event log and predicted registers beside what T0 says",
	protocol.TierTEE:      "confidential virtual machine: a hardware report bound to this channel beside what T0 says",
}

// Build says in EAR's terms what is believed. At T0 nothing vouches for the
// PC's answers: its status is never better than warning, and of its hardware and
// identity no claim is made. It returns results that Verify accepts.
func Build(f Facts) *Claims {
	v := f.Verdict
	expires := f.Now.Add(f.Life)
	if !v.NotAfter.IsZero() && v.NotAfter.Before(expires) {
		expires = v.NotAfter
	}
	pc := &PC{
		Name: f.PC,
		Tier: string(v.Tier), Means: means[v.Tier], State: v.State.String(), Reason: v.Reason, Session: v.Session,
		Image: f.Image, ImageVersion: f.ImageVersion, LabImage: f.LabImage,
		Challenges: v.Challenges, Failures: v.Failures, Evidence: v.Evidence[:], Warnings: v.Warnings,
		Context: f.Context, Asked: f.Asked, LogOrigin: f.LogOrigin, LogEntries: f.LogEntries, LogIndex: max(f.LogEntries-1, 0),
	}
	for _, x := range v.Findings {
		pc.Findings = append(pc.Findings, Finding{Time: x.Time.Unix(), Probe: x.Probe, Reason: x.Reason, Detail: x.Detail, Class: x.Class.String()})
	}
	status, vector := appraise(v)
	return &Claims{
		Profile: Profile, IssuedAt: f.Now.Unix(), Expires: expires.Unix(), Nonce: f.Nonce,
		Verifier: VerifierID{Developer: "portcullis", Build: "attestd"},
		Submods: map[string]Appraisal{
			SubmodPC:      {Status: status, Vector: vector, Policy: f.Policy, PC: pc},
			SubmodGateway: {Status: StatusNone, Gateway: &Gateway{Posture: f.Posture}},
		},
	}
}

// Values of AR4SI's vector (draft-ietf-rats-ar4si §2.3.4).
const (
	affirming       = 2
	contraindicated = 96
	unverifiable    = 1 // evidence was there and could not be judged
)

// facets says which part of the machine an op speaks of.
var facets = map[string]func(*Vector) **int8{
	protocol.OpBoot:    func(v *Vector) **int8 { return &v.Configuration },
	protocol.OpNet:     func(v *Vector) **int8 { return &v.Configuration },
	protocol.OpBlock:   func(v *Vector) **int8 { return &v.FileSystem },
	protocol.OpProcs:   func(v *Vector) **int8 { return &v.Executables },
	protocol.OpPmem:    func(v *Vector) **int8 { return &v.Executables },
	protocol.OpKtext:   func(v *Vector) **int8 { return &v.Executables },
	protocol.OpModules: func(v *Vector) **int8 { return &v.Executables },
	protocol.OpHw:      func(v *Vector) **int8 { return &v.Hardware },
}

func appraise(v verdict.Verdict) (Status, *Vector) {
	vector := new(Vector)
	switch v.State {
	case verdict.Trusted:
		for _, p := range []**int8{&vector.Configuration, &vector.Executables, &vector.FileSystem} {
			*p = value(affirming)
		}
		if v.Tier == protocol.TierSoftware {
			return StatusWarning, vector
		}
		vector.Identity, vector.Hardware = value(affirming), value(affirming)
		return StatusAffirming, vector
	case verdict.Suspect, verdict.Quarantined:
		for _, f := range v.Findings {
			if f.Class == protocol.Info {
				continue
			}
			if at, ok := facets[f.Probe]; ok {
				*at(vector) = value(contraindicated)
			} else if vector.Executables == nil {
				vector.Executables = value(unverifiable)
			}
		}
		if vector.Executables == nil {
			vector.Executables = value(unverifiable)
		}
		if v.State == verdict.Quarantined || vector.worst() == StatusContraindicated {
			return StatusContraindicated, vector
		}
		return StatusWarning, vector
	}
	return StatusNone, nil
}

func value(n int8) *int8 { return &n }

// worst is the tier of the worst claim in the vector.
func (v *Vector) worst() Status {
	worst := StatusNone
	for _, p := range v.all() {
		if p == nil {
			continue
		}
		switch n := *p; {
		case n >= 96 || n <= -96:
			worst = max(worst, StatusContraindicated)
		case n >= 32 || n <= -32:
			worst = max(worst, StatusWarning)
		case n >= 2 || n <= -2:
			worst = max(worst, StatusAffirming)
		}
	}
	return worst
}
