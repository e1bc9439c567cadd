package policy

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"gopkg.in/yaml.v3"
)

// fileClaims are claims as they stand in files: in the journal of actions (JSON), in
// the tables of `policy test` and in what `policy explain` reads (YAML or JSON). What is
// not given is empty, false or 0; the state is unknown.
type fileClaims struct {
	State      string        `json:"state" yaml:"state"`
	StateAge   span          `json:"state_age,omitempty" yaml:"state_age"`
	Reason     string        `json:"reason,omitempty" yaml:"reason"`
	Tier       string        `json:"tier,omitempty" yaml:"tier"`
	Posture    string        `json:"posture,omitempty" yaml:"posture"`
	Session    string        `json:"session,omitempty" yaml:"session"`
	SessionAge span          `json:"session_age,omitempty" yaml:"session_age"`
	Image      string        `json:"image,omitempty" yaml:"image"`
	Version    int64         `json:"version,omitempty" yaml:"version"`
	LabImage   bool          `json:"lab_image,omitempty" yaml:"lab_image"`
	Challenges int64         `json:"challenges,omitempty" yaml:"challenges"`
	Failures   int64         `json:"failures,omitempty" yaml:"failures"`
	Findings   []fileFinding `json:"findings,omitempty" yaml:"findings"`
	Drift      string        `json:"drift,omitempty" yaml:"drift"`
	Warnings   []string      `json:"warnings,omitempty" yaml:"warnings"`
	Agent      bool          `json:"agent,omitempty" yaml:"agent"`
	Gateway    bool          `json:"gateway,omitempty" yaml:"gateway"`
	Carrier    bool          `json:"carrier,omitempty" yaml:"carrier"`
	LinkLosses int64         `json:"link_losses,omitempty" yaml:"link_losses"`
	Tasks      []string      `json:"tasks,omitempty" yaml:"tasks"`
	Violations int64         `json:"violations,omitempty" yaml:"violations"`
	Banned     bool          `json:"banned,omitempty" yaml:"banned"`
}

type fileFinding struct {
	Probe  string `json:"probe" yaml:"probe"`
	Reason string `json:"reason" yaml:"reason"`
	Class  string `json:"class" yaml:"class"`
	Detail string `json:"detail,omitempty" yaml:"detail"`
	Age    span   `json:"age" yaml:"age"`
}

// span is a duration with its unit, such as "1m30s".
type span time.Duration

func (s span) MarshalText() ([]byte, error) { return []byte(time.Duration(s).String()), nil }

func (s *span) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	*s = span(d)
	return err
}

// MarshalJSON writes the claims as they stand in files.
func (c Claims) MarshalJSON() ([]byte, error) {
	f := fileClaims{State: c.State, StateAge: span(c.StateAge), Reason: c.Reason, Tier: c.Tier, Posture: c.Posture, Session: c.Session,
		SessionAge: span(c.SessionAge), Image: c.Image, Version: c.Version, LabImage: c.LabImage, Challenges: c.Challenges,
		Failures: c.Failures, Drift: c.Drift, Warnings: c.Warnings, Agent: c.Agent, Gateway: c.Gateway, Carrier: c.Carrier,
		LinkLosses: c.LinkLosses, Tasks: c.Tasks, Violations: c.Violations, Banned: c.Banned}
	for _, x := range c.Findings {
		f.Findings = append(f.Findings, fileFinding{x.Probe, x.Reason, x.Class, x.Detail, span(x.Age)})
	}
	return json.Marshal(f)
}

// UnmarshalJSON reads them back and checks them.
func (c *Claims) UnmarshalJSON(b []byte) error {
	var f fileClaims
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return err
	}
	return c.from(f)
}

func (c *Claims) from(f fileClaims) error {
	if f.State == "" {
		f.State = "unknown"
	}
	*c = Claims{State: f.State, StateAge: time.Duration(f.StateAge), Reason: f.Reason, Tier: f.Tier, Posture: f.Posture, Session: f.Session,
		SessionAge: time.Duration(f.SessionAge), Image: f.Image, Version: f.Version, LabImage: f.LabImage, Challenges: f.Challenges,
		Failures: f.Failures, Drift: f.Drift, Warnings: f.Warnings, Agent: f.Agent, Gateway: f.Gateway, Carrier: f.Carrier,
		LinkLosses: f.LinkLosses, Tasks: f.Tasks, Violations: f.Violations, Banned: f.Banned}
	for _, x := range f.Findings {
		c.Findings = append(c.Findings, Finding{x.Probe, x.Reason, x.Class, x.Detail, time.Duration(x.Age)})
	}
	return c.Check()
}

// LoadClaims reads claims from a YAML or JSON file.
func LoadClaims(path string) (*Claims, error) {
	b, err := Read(path)
	if err != nil {
		return nil, fmt.Errorf("claims: %w", err)
	}
	return ParseClaims(b)
}

// ParseClaims reads claims from YAML, of which JSON is a part.
func ParseClaims(b []byte) (*Claims, error) {
	if len(b) > MaxSize {
		return nil, fmt.Errorf("claims: more than %d bytes", MaxSize)
	}
	var f fileClaims
	dec := yaml.NewDecoder(bytes.NewReader(b))
	dec.KnownFields(true)
	if err := dec.Decode(&f); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("claims: %w", err)
	}
	c := new(Claims)
	if err := c.from(f); err != nil {
		return nil, err
	}
	return c, nil
}
