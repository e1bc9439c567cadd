package approval

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Profile is how a container may run. The zero value of every field is the
// strictest: no capability, no mount, no network, a root that cannot be written.
// What is not in it (privileged mode, host namespaces for processes or IPC,
// devices, another seccomp or AppArmor profile) cannot be approved at all.
type Profile struct {
	User         string   `json:"user"`         // "uid:gid", numbers
	Capabilities []string `json:"capabilities"` // "CAP_NET_RAW", sorted
	Network      string   `json:"network"`      // NetworkNone, NetworkHost, or the name of a network of the engine
	Mounts       []Mount  `json:"mounts"`       // sorted by target
	Tmpfs        []Tmpfs  `json:"tmpfs"`        // sorted by target
	WritableRoot bool     `json:"writable_root"`
	Command      []string `json:"command"`     // entry point and arguments; empty = those of the image
	AnyCommand   bool     `json:"any_command"` // any entry point and arguments
	Env          []string `json:"env"`         // "NAME=value", or "NAME" for any value; beside the image's own; sorted
	Limits       Limits   `json:"limits"`
}

// Networks that every engine has.
const (
	NetworkNone = "none"
	NetworkHost = "host"
)

// Mount is a directory or file of the host in the container.
type Mount struct {
	Source   string `json:"source"` // absolute, clean
	Target   string `json:"target"` // absolute, clean, not "/"
	Writable bool   `json:"writable"`
}

// Tmpfs is memory at a path, always noexec, nosuid and nodev.
type Tmpfs struct {
	Target string `json:"target"`
	Bytes  int64  `json:"bytes"` // 4096 to MaxMemory
}

// Limits of a container. None of them may be left out: 0 is not "no limit".
type Limits struct {
	MemoryBytes int64 `json:"memory_bytes"` // MinMemory to MaxMemory, without swap
	Pids        int64 `json:"pids"`         // 1 to 32768
	MilliCPU    int64 `json:"milli_cpu"`    // thousandths of a core, 10 to 1024000
}

// Bounds of Limits: the engine takes no less memory than MinMemory.
const (
	MinMemory = 6 << 20
	MaxMemory = 1 << 40
)

// Bounds of lists and texts.
const (
	maxList = 64
	maxText = 1024
)

var (
	userForm    = regexp.MustCompile(`^(0|[1-9][0-9]{0,9}):(0|[1-9][0-9]{0,9})$`)
	capForm     = regexp.MustCompile(`^CAP_[A-Z_]{2,32}$`)
	networkForm = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,63}$`)
	envForm     = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]{0,127}(=[^\x00-\x1f\x7f]*)?$`)
)

// Validate checks every field against its range.
func (p *Profile) Validate() error {
	for _, check := range []func() error{p.checkUser, p.checkMounts, p.checkCommand, p.checkLimits} {
		if err := check(); err != nil {
			return err
		}
	}
	return nil
}

func (p *Profile) checkUser() error {
	switch {
	case !userForm.MatchString(p.User):
		return refuse(ReasonMalformed, "profile: user %.40q is not uid:gid in numbers", p.User)
	case !networkForm.MatchString(p.Network):
		return refuse(ReasonMalformed, "profile: network %.80q; write none, host or a network's name", p.Network)
	case len(p.Capabilities) > maxList:
		return refuse(ReasonMalformed, "profile: %d capabilities", len(p.Capabilities))
	case !ascending(p.Capabilities):
		return refuse(ReasonMalformed, "profile: capabilities are not sorted, or one is there twice")
	}
	for _, c := range p.Capabilities {
		if !capForm.MatchString(c) {
			return refuse(ReasonMalformed, "profile: capability %.40q is not of the form CAP_NET_RAW", c)
		}
	}
	return nil
}

func (p *Profile) checkMounts() error {
	if len(p.Mounts) > maxList || len(p.Tmpfs) > maxList {
		return refuse(ReasonMalformed, "profile: %d mounts and %d tmpfs, %d of each are possible", len(p.Mounts), len(p.Tmpfs), maxList)
	}
	targets := map[string]bool{}
	for i, m := range p.Mounts {
		switch {
		case !cleanPath(m.Source) || !cleanPath(m.Target) || m.Target == "/" || m.Source == "/":
			return refuse(ReasonMalformed, "profile: mount %.200q at %.200q: absolute clean paths below / are needed", m.Source, m.Target)
		case targets[m.Target] || i > 0 && p.Mounts[i-1].Target > m.Target:
			return refuse(ReasonMalformed, "profile: mounts are not sorted by target, or %.200q is there twice", m.Target)
		}
		targets[m.Target] = true
	}
	for i, m := range p.Tmpfs {
		switch {
		case !cleanPath(m.Target) || m.Target == "/" || m.Bytes < 4096 || m.Bytes > MaxMemory:
			return refuse(ReasonMalformed, "profile: tmpfs of %d bytes at %.200q", m.Bytes, m.Target)
		case targets[m.Target] || i > 0 && p.Tmpfs[i-1].Target > m.Target:
			return refuse(ReasonMalformed, "profile: tmpfs are not sorted by target, or %.200q is there twice", m.Target)
		}
		targets[m.Target] = true
	}
	return nil
}

func (p *Profile) checkCommand() error {
	if p.AnyCommand && len(p.Command) > 0 {
		return refuse(ReasonMalformed, "profile: a command, and any command")
	}
	if len(p.Command) > maxList || len(p.Env) > maxList {
		return refuse(ReasonMalformed, "profile: %d words of a command and %d variables, %d are possible", len(p.Command), len(p.Env), maxList)
	}
	for _, w := range p.Command {
		if len(w) > maxText || strings.ContainsRune(w, 0) {
			return refuse(ReasonMalformed, "profile: a word of the command has %d bytes, or a NUL in it", len(w))
		}
	}
	if !ascending(p.Env) {
		return refuse(ReasonMalformed, "profile: env is not sorted, or a variable is there twice")
	}
	for i, e := range p.Env {
		if len(e) > maxText || !envForm.MatchString(e) {
			return refuse(ReasonMalformed, "profile: env %.80q is neither NAME nor NAME=value", e)
		}
		if i > 0 && variable(p.Env[i-1]) == variable(e) {
			return refuse(ReasonMalformed, "profile: env has %.80q twice", variable(e))
		}
	}
	return nil
}

func (p *Profile) checkLimits() error {
	l := p.Limits
	switch {
	case l.MemoryBytes < MinMemory || l.MemoryBytes > MaxMemory:
		return refuse(ReasonMalformed, "profile: memory_bytes %d, %d to %d are possible", l.MemoryBytes, MinMemory, int64(MaxMemory))
	case l.Pids < 1 || l.Pids > 32768:
		return refuse(ReasonMalformed, "profile: pids %d, 1 to 32768 are possible", l.Pids)
	case l.MilliCPU < 10 || l.MilliCPU > 1024000:
		return refuse(ReasonMalformed, "profile: milli_cpu %d, 10 to 1024000 are possible", l.MilliCPU)
	}
	return nil
}

func ascending(list []string) bool {
	for i := 1; i < len(list); i++ {
		if list[i-1] >= list[i] {
			return false
		}
	}
	return true
}

func cleanPath(s string) bool {
	return len(s) <= maxText && strings.HasPrefix(s, "/") && path.Clean(s) == s && !strings.ContainsFunc(s, func(r rune) bool { return r < 0x20 || r == 0x7f })
}

func variable(e string) string {
	name, _, _ := strings.Cut(e, "=")
	return name
}

// Covers says with ReasonProfile what want asks for beyond p; nil where it asks
// for nothing more. want must be a valid profile.
func (p *Profile) Covers(want *Profile) error {
	switch {
	case want.User != p.User:
		return refuse(ReasonProfile, "user %s, approved is %s", want.User, p.User)
	case want.Network != p.Network && want.Network != NetworkNone:
		return refuse(ReasonProfile, "network %s, approved is %s", want.Network, p.Network)
	case want.WritableRoot && !p.WritableRoot:
		return refuse(ReasonProfile, "a root that can be written")
	case !p.AnyCommand && (want.AnyCommand || !slices.Equal(want.Command, p.Command)):
		return refuse(ReasonProfile, "command %.200q, approved is %.200q", want.Command, p.Command)
	}
	for _, c := range want.Capabilities {
		if !slices.Contains(p.Capabilities, c) {
			return refuse(ReasonProfile, "capability %s", c)
		}
	}
	for _, m := range want.Mounts {
		if !slices.Contains(p.Mounts, m) && (m.Writable || !slices.Contains(p.Mounts, Mount{m.Source, m.Target, true})) {
			return refuse(ReasonProfile, "mount of %s at %s, writable %v", m.Source, m.Target, m.Writable)
		}
	}
	for _, m := range want.Tmpfs {
		if !slices.ContainsFunc(p.Tmpfs, func(a Tmpfs) bool { return a.Target == m.Target && a.Bytes >= m.Bytes }) {
			return refuse(ReasonProfile, "tmpfs of %d bytes at %s", m.Bytes, m.Target)
		}
	}
	for _, e := range want.Env {
		if !slices.Contains(p.Env, e) && !slices.Contains(p.Env, variable(e)) {
			return refuse(ReasonProfile, "variable %s", variable(e))
		}
	}
	w, a := want.Limits, p.Limits
	if w.MemoryBytes > a.MemoryBytes || w.Pids > a.Pids || w.MilliCPU > a.MilliCPU {
		return refuse(ReasonProfile, "limits %+v, approved are %+v", w, a)
	}
	return nil
}

// ParseProfile reads a profile that a person wrote: white space and order are free,
// what is left out is the strictest; limits must be there.
func ParseProfile(data []byte) (Profile, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var p Profile
	if err := dec.Decode(&p); err != nil {
		return Profile{}, refuse(ReasonMalformed, "the profile: %v", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Profile{}, refuse(ReasonMalformed, "the profile: data behind the end")
	}
	return p, p.Validate()
}
