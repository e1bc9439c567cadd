package lab

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"
)

// Down ends the lab called name: its owner is asked to go, or, when that has
// left or died, everything recorded is ended and removed. Of processes only
// those are ended that still are the ones recorded.
func Down(ctx context.Context, base, name string) error {
	p, err := newPlace(base, name)
	if err != nil {
		return err
	}
	r, err := p.load()
	if err != nil {
		return err
	}
	if !r.Kept && r.Owner.alive() {
		syscall.Kill(r.Owner.PID, syscall.SIGTERM)
	}
	for {
		f, err := p.lock()
		if err == nil {
			defer p.unlock(f)
			return p.sweep()
		}
		if !errors.Is(err, ErrRunning) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("lab: %s (process %d) does not end: %w", name, r.Owner.PID, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Names lists the labs below base that run or have left something.
func Names(base string) []string { return names(base) }

// Status is what is known of one lab from outside.
type Status struct {
	Name      string          `json:"name"`
	Firmware  string          `json:"firmware"`
	Pi        string          `json:"pi"`
	Created   time.Time       `json:"created"`
	Owner     int             `json:"owner_pid"` // 0 when the lab was kept
	Processes map[string]bool `json:"processes"` // name → alive
	RunDir    string          `json:"run_dir"`   // sockets of its services
	StateDir  string          `json:"state_dir"`
	Dir       string          `json:"dir"`
}

// Look tells about the lab called name.
func Look(base, name string) (Status, error) {
	p, err := newPlace(base, name)
	if err != nil {
		return Status{}, err
	}
	r, err := p.load()
	if err != nil {
		return Status{}, err
	}
	s := Status{Name: name, Firmware: r.Firmware, Pi: r.Pi, Created: r.Created, Processes: map[string]bool{},
		RunDir: p.run(), StateDir: p.file("state"), Dir: p.dir()}
	if !r.Kept {
		s.Owner = r.Owner.PID
	}
	for _, c := range r.Processes {
		s.Processes[c.Name] = c.alive()
	}
	return s, nil
}
