package protocol

import (
	"errors"
	"fmt"
	"slices"
)

// BootData is the answer of op boot: what was booted and how the kernel is set.
type BootData struct {
	Cmdline     string   `json:"cmdline"`      // /proc/cmdline without its end of line
	Release     string   `json:"release"`      // uname -r
	Notes       string   `json:"notes_sha256"` // hex, of /sys/kernel/notes: the kernel's build id is in it
	BootID      string   `json:"boot_id"`      // /proc/sys/kernel/random/boot_id
	Lockdown    string   `json:"lockdown"`     // none, integrity or confidentiality
	LSM         string   `json:"lsm"`          // /sys/kernel/security/lsm: the security modules, in their order
	Tainted     uint64   `json:"tainted"`      // /proc/sys/kernel/tainted
	KexecLoaded bool     `json:"kexec_loaded"` // another kernel waits to be started
	UptimeMs    int64    `json:"uptime_ms"`    // since the kernel started
	Traced      []string `json:"traced"`       // kernel functions with a tracer on them, kprobes and uprobes
	Doors       []string `json:"doors"`        // of Doors: those that this kernel has
	Helpers     []Helper `json:"helpers"`      // programs that the kernel starts by itself, in the order of Helpers
}

// Helper is a setting of the kernel that names a program, by its file in /proc/sys/kernel.
type Helper struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// The helpers.
const (
	HelperCore     = "core_pattern"
	HelperModprobe = "modprobe"
	HelperPoweroff = "poweroff_cmd"
)

// Helpers are those that are told.
var Helpers = []string{HelperCore, HelperModprobe, HelperPoweroff}

// Doors are the ways into a running kernel of which it is told whether they exist:
// the file systems debugfs and tracefs, starting another kernel, loading modules.
// A kernel that was built without one cannot show it, and no other can be without it.
var Doors = []string{DoorDebugfs, DoorKexec, DoorModules, DoorTracefs}

// The doors, sorted.
const (
	DoorDebugfs = "debugfs"
	DoorKexec   = "kexec"
	DoorModules = "modules"
	DoorTracefs = "tracefs"
)

// Check bounds the lists and strings.
func (d *BootData) Check() error {
	if d.UptimeMs < 0 {
		return errors.New("negative uptime")
	}
	if err := atMost("traced functions", len(d.Traced), MaxTraced); err != nil {
		return err
	}
	if err := short("traced", d.Traced...); err != nil {
		return err
	}
	for i, door := range d.Doors {
		if !slices.Contains(Doors, door) || i > 0 && d.Doors[i-1] >= door {
			return fmt.Errorf("door %.40q is unknown or out of order", door)
		}
	}
	next := 0
	for _, h := range d.Helpers {
		i := slices.Index(Helpers, h.Name)
		if i < next {
			return fmt.Errorf("helper %.40q is unknown or out of order", h.Name)
		}
		if err := short("helper", h.Value); err != nil {
			return err
		}
		next = i + 1
	}
	return short("boot", d.Cmdline, d.Release, d.Notes, d.BootID, d.Lockdown, d.LSM)
}

// MaxTraced is how many traced functions are named; the first are enough.
const MaxTraced = 64
