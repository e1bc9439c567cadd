package probe

import (
	"encoding/json"
	"slices"
	"strings"
)

// dockerConfig is what is wanted of a container's config.v2.json.
type dockerConfig struct {
	Image       string
	Path        string
	Args        []string
	MountPoints map[string]struct{ Type, Source string }
}

// dockerHost is what is wanted of its hostconfig.json.
type dockerHost struct {
	Privileged                                 bool
	NetworkMode, PidMode, IpcMode, UTSMode     string
	CgroupnsMode, UsernsMode                   string
	CapAdd, SecurityOpt                        []string
	Devices, DeviceRequests, DeviceCgroupRules []json.RawMessage
	MaskedPaths, ReadonlyPaths                 []string
}

// decodeLoose reads a record of Docker's: of its many keys only some are wanted.
func decodeLoose(path string, to any) error {
	b, err := read(path)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, to)
}

// privileges lists what gives a container power over the machine.
func privileges(c *dockerConfig, h *dockerHost) (out []string) {
	if h.Privileged {
		out = append(out, "privileged")
	}
	for _, m := range []struct{ name, mode string }{{"network", h.NetworkMode}, {"pid", h.PidMode}, {"ipc", h.IpcMode}, {"uts", h.UTSMode},
		{"cgroup", h.CgroupnsMode}, {"user", h.UsernsMode}} {
		if m.mode == "host" {
			out = append(out, m.name+"=host")
		}
	}
	for _, v := range h.CapAdd {
		out = append(out, "capability "+clean(v))
	}
	for _, v := range h.SecurityOpt {
		if strings.Contains(v, "unconfined") || strings.Contains(v, "disable") {
			out = append(out, clean(v))
		}
	}
	if n := len(h.Devices) + len(h.DeviceRequests) + len(h.DeviceCgroupRules); n > 0 {
		out = append(out, "devices")
	}
	for to, m := range c.MountPoints {
		if m.Type == "bind" {
			out = append(out, "directory "+clean(m.Source)+" on "+clean(to))
		}
	}
	slices.Sort(out)
	return out
}
