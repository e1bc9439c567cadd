// Package scenario holds what the project claims about a running system, each as
// a short play: a lab, a machine, an attack or a boot, and what must be seen. The
// same code runs under `portcullis lab check` and under `go test ./lab/scenario`.
//
// Scenes that leave the machine as they found it share one boot: a Play is one
// lab in which several scenes follow one another, and a scene that needs a
// trusted PC gets one, by a reset where the scene before has spoilt it.
package scenario

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"portcullis/lab"
	"portcullis/lab/attack"
	"portcullis/lab/qemu"
)

// Limits of one boot to trusted. On two free cores it takes well under a minute.
const BootLimit = 5 * time.Minute

// Play is one lab and the scenes in it.
type Play struct {
	Name      string
	Firmware  qemu.Firmware
	Pi        string                         // lab.PiNetns or lab.PiImage; "" = lab.PiNetns
	TPM       bool                           // the PC has one
	Contained bool                           // the services of a lab.PiImage are containers
	Played    bool                           // the PC is a program in a namespace, not QEMU
	Tune      func(*lab.Settings)            // of the Pi's configuration
	Image     func(*lab.Built, string) error // makes another image in the given directory
	Scenes    []Scene
	// Long plays are for `lab check` and `make soak`: make test leaves them out.
	Long bool
}

// Scene is one claim.
type Scene struct {
	Name  string
	Title string // the claim in words
	// Trusted: the scene begins with a PC that is trusted.
	Trusted bool
	Run     func(context.Context, *Stage) error
}

// Result tells how a scene went.
type Result struct {
	Play    string  `json:"play"`
	Scene   string  `json:"scenario"`
	Title   string  `json:"title"`
	OK      bool    `json:"ok"`
	Seconds float64 `json:"seconds"`
	Detail  string  `json:"detail,omitempty"` // the reason of a failure, or a figure
}

// Stage is what a scene sees.
type Stage struct {
	*lab.Lab
	note string
	pc   *attack.PC
}

// Note adds a figure to the result, for instance the seconds of a boot.
func (s *Stage) Note(format string, args ...any) { s.note = fmt.Sprintf(format, args...) }

// Options of Run.
type Options struct {
	Builder *lab.Builder
	Name    string          // of the lab
	State   string          // base of the state directories
	Events  func(lab.Event) // sees all events
	Report  func(Result)    // called after each scene
}

// Run plays all scenes of p that want accepts; a nil want accepts all.
func (p Play) Run(ctx context.Context, o Options, want func(scene string) bool) (results []Result) {
	report := func(r Result) {
		r.Play = p.Name
		results = append(results, r)
		if o.Report != nil {
			o.Report(r)
		}
	}
	var scenes []Scene
	for _, s := range p.Scenes {
		if want == nil || want(s.Name) {
			scenes = append(scenes, s)
		}
	}
	if len(scenes) == 0 {
		return nil
	}
	began := time.Now()
	st, err := p.open(ctx, o)
	if err != nil {
		for _, s := range scenes {
			report(Result{Scene: s.Name, Title: s.Title, Detail: "the lab did not start: " + err.Error(), Seconds: since(began)})
		}
		return results
	}
	defer func() {
		if err := st.Close(); err != nil {
			report(Result{Scene: "teardown", Title: "nothing is left behind", Detail: err.Error()})
		}
	}()
	for _, s := range scenes {
		began := time.Now()
		st.note = ""
		err := p.scene(ctx, st, s)
		r := Result{Scene: s.Name, Title: s.Title, OK: err == nil, Seconds: since(began), Detail: st.note}
		if err != nil {
			r.Detail = err.Error()
		}
		report(r)
	}
	return results
}

// open starts the lab of p.
func (p Play) open(ctx context.Context, o Options) (*Stage, error) {
	var image string
	if p.Image != nil {
		built, err := o.Builder.Build(ctx, func(string) {})
		if err != nil {
			return nil, err
		}
		if image, err = otherImage(p, built); err != nil {
			return nil, err
		}
	}
	l, err := lab.Start(ctx, lab.Options{
		Name: o.Name, State: o.State, Firmware: p.Firmware, Pi: p.Pi, Contained: p.Contained, TPM: p.TPM, Played: p.Played, Builder: o.Builder, Events: o.Events,
		Tune: func(s *lab.Settings) {
			if image != "" {
				s.ImageDir = image
			}
			if p.Tune != nil {
				p.Tune(s)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	return &Stage{Lab: l}, nil
}

func (p Play) scene(ctx context.Context, st *Stage, s Scene) error {
	if s.Trusted {
		if err := st.EnsureTrusted(ctx); err != nil {
			return fmt.Errorf("before the scene: %w", err)
		}
		if err := st.booted(ctx); err != nil {
			return fmt.Errorf("before the scene: %w", err)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, BootLimit+time.Minute)
	defer cancel()
	return s.Run(ctx, st)
}

// EnsureTrusted powers the PC on, or resets it where it is not trusted, and waits.
func (s *Stage) EnsureTrusted(ctx context.Context) error {
	pc := s.PC()
	if pc == nil {
		_, err := s.Boot(ctx, BootLimit)
		return err
	}
	if v, err := s.Verdict(ctx); err == nil && v.State == Trusted {
		return nil
	}
	return s.Reboot(ctx)
}

// booted waits until the PC's systemd has started everything: the agent is
// trusted long before, and a scene must not measure the rest of the boot.
func (s *Stage) booted(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, BootLimit)
	defer cancel()
	r, err := s.Exec(ctx, "/usr/bin/systemctl", "is-system-running", "--wait")
	if err != nil {
		return fmt.Errorf("the PC's command channel: %w", err)
	}
	if state := strings.TrimSpace(string(r.Stdout)); state != "running" {
		return fmt.Errorf("the PC's systemd is %q: %s%s", state, r.Stderr, r.Error)
	}
	return nil
}

// Reboot resets the PC and waits until it is trusted again.
func (s *Stage) Reboot(ctx context.Context) error {
	pc := s.PC()
	if pc == nil {
		return errors.New("the PC is off")
	}
	ctx, cancel := context.WithTimeout(ctx, BootLimit)
	defer cancel()
	mark := s.Log.Mark()
	if err := pc.Reset(ctx); err != nil {
		return err
	}
	opened, err := s.Log.Wait(ctx, mark, lab.Is("session.opened"))
	if err != nil {
		return fmt.Errorf("no boot request after the reset: %w", err)
	}
	_, err = s.Log.Wait(ctx, mark, func(e lab.Event) bool {
		return e.Name == "verdict" && e.Text("state") == "trusted" && e.Text("session") == opened.Text("session")
	})
	if err != nil {
		return fmt.Errorf("not trusted after the reset: %w; %s", err, s.Why(mark))
	}
	return nil
}

func since(t time.Time) float64 { return float64(time.Since(t).Milliseconds()) / 1000 }
