// Package tamper decides what happens when a detector sees somebody at the Pi: report,
// lock or destroy, never more than the operator opted in to. A small daemon runs
// it. It acts through an interface and writes a journal before and after every
// step, so that a killed process goes on where it was.
package tamper

import (
	"fmt"
	"sort"
)

// Action is what an event leads to. Each includes the ones before it.
type Action string

// Actions, the milder first.
const (
	// Report writes an event.
	Report Action = "report"
	// Lock drops the PC from the network and closes the chip's policy until the next
	// power cycle.
	Lock Action = "lock"
	// Destroy makes the chip forget the disk's key and erases the keyslots. Only the
	// recovery key's own copy of the header elsewhere would open the disk again, and
	// there is none: the data is gone.
	Destroy Action = "destroy"
)

// What an operator has to write to opt in, word for word.
const (
	ConfirmLock    = "lock this pi"
	ConfirmDestroy = "erase my disk"
)

// Config is the operator's wish.
type Config struct {
	// Sources maps a detector ("chassis", "perimeter-0", …) to its action. One that
	// is not listed is reported.
	Sources map[string]Action `json:"sources,omitempty" yaml:"sources"`
	// Lock and Destroy hold the confirmations; each is its own.
	Lock    string `json:"lock,omitempty" yaml:"lock"`
	Destroy string `json:"destroy,omitempty" yaml:"destroy"`
}

// maxSources caps Config.Sources.
const maxSources = 32

// Policy is a checked Config. The zero value reports everything.
type Policy struct {
	actions map[string]Action
	most    Action
}

// NewPolicy checks c. An action without its opt-in is an error, not a milder action: the
// operator believes in it.
func NewPolicy(c Config) (Policy, error) {
	p := Policy{actions: map[string]Action{}, most: Report}
	if c.Lock != "" && c.Lock != ConfirmLock {
		return Policy{}, fmt.Errorf("lock: to opt in it must read %q", ConfirmLock)
	}
	if c.Destroy != "" && c.Destroy != ConfirmDestroy {
		return Policy{}, fmt.Errorf("destroy: to opt in it must read %q", ConfirmDestroy)
	}
	if len(c.Sources) > maxSources {
		return Policy{}, fmt.Errorf("%d sources are more than %d", len(c.Sources), maxSources)
	}
	names := make([]string, 0, len(c.Sources))
	for n := range c.Sources {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		a := c.Sources[n]
		switch {
		case !sourceName(n):
			return Policy{}, fmt.Errorf("source %q is no name", n)
		case a == Lock && c.Lock == "":
			return Policy{}, fmt.Errorf("source %s: %s needs its opt-in, lock: %q", n, a, ConfirmLock)
		case a == Destroy && c.Destroy == "":
			return Policy{}, fmt.Errorf("source %s: %s needs its opt-in, destroy: %q", n, a, ConfirmDestroy)
		case a != Report && a != Lock && a != Destroy:
			return Policy{}, fmt.Errorf("source %s: action %q is not known", n, a)
		}
		p.actions[n] = a
		if rank(a) > rank(p.most) {
			p.most = a
		}
	}
	return p, nil
}

// Action is what an event of source leads to.
func (p Policy) Action(source string) Action {
	if a, ok := p.actions[source]; ok {
		return a
	}
	return Report
}

// Most is the strongest action that any source leads to.
func (p Policy) Most() Action {
	if p.most == "" {
		return Report
	}
	return p.most
}

func rank(a Action) int {
	switch a {
	case Lock:
		return 1
	case Destroy:
		return 2
	}
	return 0
}

func sourceName(s string) bool {
	for _, r := range s {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '-' {
			return false
		}
	}
	return s != "" && len(s) <= 32
}

// step is one thing that is done. Every step can be done twice.
type step string

const (
	stepDropPC step = "drop-pc"
	stepCap    step = "cap"
	stepForget step = "forget"
	stepErase  step = "erase"
)

// steps of an action, in order. A destruction locks first: should it be interrupted, the
// PC is off the network already. Erasing goes on where forgetting fails, and the
// other way round.
func steps(a Action) []step {
	switch a {
	case Lock:
		return []step{stepDropPC, stepCap}
	case Destroy:
		return []step{stepDropPC, stepCap, stepForget, stepErase}
	}
	return nil
}
