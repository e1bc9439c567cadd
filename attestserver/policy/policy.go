package policy

import (
	"slices"
	"time"
)

// Action is one thing that can follow.
type Action string

// The actions.
const (
	Report     Action = "report"     // an event
	Webhook    Action = "webhook"    // a signed message to each configured address
	StopTask   Action = "stop_task"  // the grants of the session's tasks are revoked
	Quarantine Action = "quarantine" // as the state machine does it, until the next boot
	Reboot     Action = "reboot"     // down the ladder of attest.power
	PowerOff   Action = "power_off"
)

// Actions lists them, the mildest first.
var Actions = []Action{Report, Webhook, StopTask, Quarantine, Reboot, PowerOff}

// Power tells whether a takes the PC down.
func (a Action) Power() bool { return a == Reboot || a == PowerOff }

// Rule is one rule. A Rule in a Policy is valid and compiled.
type Rule struct {
	Name     string
	When     string        // CEL, of type bool
	Then     []Action      // in this order, each once
	Hold     time.Duration // When must be true for so long without a break
	Cooldown time.Duration // from one firing to the next, also across boots and restarts
	DryRun   bool          // its firing is recorded and does nothing
	Line     int           // in its file

	cond *condition
}

// Policy is a list of rules that have been checked.
type Policy struct {
	Name  string // of the file, or Builtin
	Rules []Rule
}

// Limits and defaults of a rule.
const (
	MaxRules        = 64
	MaxHold         = time.Hour
	MinCooldown     = time.Second
	MaxCooldown     = 24 * time.Hour
	DefaultCooldown = time.Minute
	PowerCooldown   = 5 * time.Minute // default of a rule that takes the PC down
)

// Has tells whether the rule leads to a.
func (r *Rule) Has(a Action) bool { return slices.Contains(r.Then, a) }

// Power tells whether the rule takes the PC down.
func (r *Rule) Power() bool { return slices.ContainsFunc(r.Then, Action.Power) }

// Outcome is what one rule says of claims.
type Outcome struct {
	Rule *Rule
	True bool
	Err  error // the condition has no answer for these claims: the rule does not fire
}

// Evaluate asks every rule.
func (p *Policy) Evaluate(c *Claims) []Outcome {
	out := make([]Outcome, len(p.Rules))
	for i := range p.Rules {
		out[i] = p.Rules[i].ask(c)
	}
	return out
}

func (r *Rule) ask(c *Claims) Outcome {
	ok, err := r.cond.eval(c)
	return Outcome{r, ok && err == nil, err}
}
