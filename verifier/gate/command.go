package gate

import (
	"errors"
	"fmt"
	"strings"
)

// Reasons of a refusal, as they stand in the engine's answer.
var (
	ErrCommand = errors.New("the gate does not know this command line of runc")
	ErrRefused = errors.New("the gate refuses this command")
	ErrGuard   = errors.New("the guard does not answer")
	ErrRunc    = errors.New("runc cannot be executed")
	ErrHeld    = errors.New("the guard does not let it start")
)

// command is what a command line of runc asks for.
type command struct {
	name string // "" = none: --version
	id   string // of start
	log  string // where runc writes what goes wrong, as JSON; "" = nowhere

	global []string // what stands before the command
}

// Global options of runc (runc(8)).
var (
	withValue = map[string]bool{"root": true, "log": true, "log-format": true, "criu": true, "rootless": true}
	alone     = map[string]bool{"debug": true, "systemd-cgroup": true, "version": true, "v": true}
)

// start lets a container's program run.
const start = "start"

// passes are the commands that execute nothing of a container.
var passes = map[string]bool{"": true, "create": true, "delete": true, "events": true, "features": true, "kill": true, "pause": true,
	"ps": true, "resume": true, "state": true, "update": true}

// parse reads the words behind the program's name.
func parse(args []string) (c command, err error) {
	all := args
	for len(args) > 0 && strings.HasPrefix(args[0], "-") {
		name, value, has := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(args[0], "-"), "-"), "=")
		args = args[1:]
		switch {
		case alone[name] || name == "rootless" && has:
		case !withValue[name]:
			return c, fmt.Errorf("%w: option %.40q", ErrCommand, name)
		case !has && len(args) == 0:
			return c, fmt.Errorf("%w: option %q without its value", ErrCommand, name)
		case !has:
			value, args = args[0], args[1:]
		}
		if name == "log" {
			c.log = value
		}
	}
	if len(args) == 0 {
		return c, nil
	}
	c.name, c.global = args[0], all[:len(all)-len(args)]
	switch {
	case passes[c.name]:
		return c, nil
	case c.name != start:
		return c, fmt.Errorf("%w: %.40q", ErrRefused, c.name)
	case len(args) != 2 || !isID(args[1]):
		return c, fmt.Errorf("%w: start takes the ID of a container of the engine", ErrCommand)
	}
	c.id = args[1]
	return c, nil
}

// isID tells whether s is an ID as the engine draws them.
func isID(s string) bool {
	return len(s) == idSize && strings.Trim(s, "0123456789abcdef") == ""
}

// ParseQuestion reads what the gate asks: the ID of a container.
func ParseQuestion(b []byte) (id string, err error) {
	id, ok := strings.CutSuffix(string(b), "\n")
	if !ok || !isID(id) {
		return "", fmt.Errorf("%w: %.80q", ErrCommand, b)
	}
	return id, nil
}

// parseAnswer is nil where the guard lets go.
func parseAnswer(b []byte) error {
	if string(b) == letGo {
		return nil
	}
	why, ok := strings.CutPrefix(string(b), no)
	if !ok {
		return fmt.Errorf("%w: it says %.80q", ErrGuard, b)
	}
	return fmt.Errorf("%w: %q", ErrHeld, strings.TrimSuffix(why, "\n"))
}

// Answer is what the gate is told: why a container does not start, or "" where it does.
func Answer(why string) []byte {
	if why == "" {
		return []byte(letGo)
	}
	return []byte(no + why[:min(len(why), MaxAnswer-len(no)-2)] + "\n")
}
