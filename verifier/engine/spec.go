package engine

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/api/types/mount"

	"portcullis/verifier/approval"
)

// Spec is a container as it is to run: nothing of it is left to the engine's
// defaults that the engine lets one say.
type Spec struct {
	Name    string // "" = the engine invents one
	Image   Image  // as the store has it; its ID is what runs
	Profile approval.Profile
	Labels  map[string]string
	Tty     bool
	Remove  bool // when it ends

	// Slice of systemd that the container's control group lies in, for an engine whose
	// groups are systemd's: what the slice's unit says of addresses and processors holds
	// for the container. "" = where the engine puts it.
	Slice string
	// Journal is the identifier (SYSLOG_IDENTIFIER) under which its output goes to
	// systemd's journal. "" = a file of the engine, with a bound.
	Journal string
	// Runtime is the engine's OCI runtime that it is for. "" = runc, under any of its names.
	Runtime string
}

// Runc is the runtime that every engine has.
const Runc = "runc"

const (
	noNewPrivileges = "no-new-privileges"
	logDriver       = "local"
	journalDriver   = "journald"
	shmSize         = 16 << 20
)

// tmpfsOptions of every tmpfs: no program runs from memory that can be written.
func tmpfsOptions(t approval.Tmpfs) string {
	return fmt.Sprintf("rw,noexec,nosuid,nodev,size=%d", t.Bytes)
}

func (s Spec) config() *container.Config {
	c := &container.Config{Image: s.Image.ID, User: s.Profile.User, Env: s.Profile.Env, Labels: s.Labels, Tty: s.Tty,
		AttachStdout: true, AttachStderr: true, NetworkDisabled: s.Profile.Network == approval.NetworkNone,
		// An image's own check would run programs behind the command's back.
		Healthcheck: &container.HealthConfig{Test: []string{"NONE"}}}
	if len(s.Profile.Command) > 0 {
		c.Entrypoint = s.Profile.Command
	}
	return c
}

func (s Spec) host() *container.HostConfig {
	p := s.Profile
	pids := p.Limits.Pids
	h := &container.HostConfig{
		Runtime:        s.Runtime,
		NetworkMode:    container.NetworkMode(p.Network),
		ReadonlyRootfs: !p.WritableRoot,
		CapDrop:        []string{"ALL"},
		CapAdd:         p.Capabilities,
		SecurityOpt:    []string{noNewPrivileges},
		IpcMode:        container.IPCModePrivate,
		CgroupnsMode:   container.CgroupnsModePrivate,
		RestartPolicy:  container.RestartPolicy{Name: container.RestartPolicyDisabled},
		LogConfig:      s.log(),
		AutoRemove:     s.Remove,
		ShmSize:        shmSize,
		Resources: container.Resources{CgroupParent: s.Slice, Memory: p.Limits.MemoryBytes, MemorySwap: p.Limits.MemoryBytes, PidsLimit: &pids,
			NanoCPUs: p.Limits.MilliCPU * 1e6, Ulimits: []*container.Ulimit{{Name: "core"}}},
	}
	for _, m := range p.Mounts {
		h.Mounts = append(h.Mounts, mount.Mount{Type: mount.TypeBind, Source: m.Source, Target: m.Target, ReadOnly: !m.Writable,
			BindOptions: &mount.BindOptions{Propagation: mount.PropagationRPrivate}})
	}
	for _, t := range p.Tmpfs {
		if h.Tmpfs == nil {
			h.Tmpfs = map[string]string{}
		}
		h.Tmpfs[t.Target] = tmpfsOptions(t)
	}
	return h
}

// log says where the container's output goes.
func (s Spec) log() container.LogConfig {
	if s.Journal != "" {
		return container.LogConfig{Type: journalDriver, Config: map[string]string{"tag": s.Journal}}
	}
	return container.LogConfig{Type: logDriver, Config: map[string]string{"max-size": "1m", "max-file": "2"}}
}

// Create makes the container and returns its ID. It does not start it.
func (c *Client) Create(ctx context.Context, s Spec) (string, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	r, err := c.api.ContainerCreate(ctx, s.config(), s.host(), nil, nil, s.Name)
	if err != nil {
		return "", wrap("create", err)
	}
	return r.ID, nil
}

// Differs reads the container back and names the first thing that is not as s has
// it; "" where all is. It is asked before each start and while a container runs.
func (c *Client) Differs(ctx context.Context, id string, s Spec) (string, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	i, err := c.api.ContainerInspect(ctx, id)
	if err != nil {
		return "", wrap("inspect", err)
	}
	if i.ContainerJSONBase == nil || i.HostConfig == nil || i.Config == nil {
		return "the engine tells nothing of it", nil
	}
	for _, check := range []func(container.InspectResponse, Spec) string{identity, isolation, resources, filesystems} {
		if d := check(i, s); d != "" {
			return d, nil
		}
	}
	return "", nil
}

// identity: which program of which image.
func identity(i container.InspectResponse, s Spec) string {
	command := s.Image.Entrypoint
	arguments := s.Image.Command
	if len(s.Profile.Command) > 0 {
		command, arguments = s.Profile.Command, nil
	}
	env := mergeEnv(s.Image.Env, s.Profile.Env)
	got := slices.Clone([]string(i.Config.Env))
	slices.Sort(got)
	switch {
	case i.Image != s.Image.ID:
		return "image " + i.Image
	case i.Config.User != s.Profile.User:
		return "user " + i.Config.User
	case !slices.Equal([]string(i.Config.Entrypoint), command):
		return fmt.Sprintf("entry point %q", i.Config.Entrypoint)
	case !slices.Equal([]string(i.Config.Cmd), arguments):
		return fmt.Sprintf("arguments %q", i.Config.Cmd)
	case !slices.Equal(got, env):
		return "environment"
	case i.Config.OpenStdin || i.Config.StdinOnce:
		return "standard input"
	case i.Config.Tty != s.Tty:
		return "terminal"
	case i.Config.Healthcheck != nil && !slices.Equal(i.Config.Healthcheck.Test, []string{"NONE"}):
		return "health check"
	case i.HostConfig.AutoRemove != s.Remove:
		return "removal"
	}
	return ""
}

// mergeEnv is what an engine makes of the image's and the container's variables, sorted.
func mergeEnv(image, own []string) []string {
	name := func(v string) string { n, _, _ := strings.Cut(v, "="); return n }
	out := slices.Clone(own)
	for _, v := range image {
		if !slices.ContainsFunc(own, func(o string) bool { return name(o) == name(v) }) {
			out = append(out, v)
		}
	}
	slices.Sort(out)
	return out
}

// isolation: what separates it from the machine.
func isolation(i container.InspectResponse, s Spec) string {
	h := i.HostConfig
	switch {
	case h.Privileged:
		return "privileged"
	case string(h.NetworkMode) != s.Profile.Network:
		return "network " + string(h.NetworkMode)
	case !slices.Equal([]string(h.CapDrop), []string{"ALL"}):
		return fmt.Sprintf("dropped capabilities %q", h.CapDrop)
	case !slices.Equal([]string(h.CapAdd), s.Profile.Capabilities):
		return fmt.Sprintf("capabilities %q", h.CapAdd)
	case !slices.Equal(h.SecurityOpt, []string{noNewPrivileges}):
		return fmt.Sprintf("security options %q", h.SecurityOpt)
	case h.PidMode != "" || h.UTSMode != "" || h.UsernsMode != "" || h.IpcMode != container.IPCModePrivate || h.CgroupnsMode != container.CgroupnsModePrivate:
		return "namespaces"
	case len(h.Devices)+len(h.DeviceRequests)+len(h.DeviceCgroupRules) > 0:
		return "devices"
	case len(h.GroupAdd)+len(h.Links)+len(h.ExtraHosts)+len(h.DNS)+len(h.PortBindings)+len(h.Sysctls) > 0 || h.PublishAllPorts:
		return "groups, links, hosts, ports or kernel settings"
	case s.Runtime != "" && h.Runtime != s.Runtime, s.Runtime == "" && h.Runtime != "" && h.Runtime != Runc && h.Runtime != "io.containerd.runc.v2":
		return "runtime " + h.Runtime
	case !slices.Contains(h.MaskedPaths, "/proc/kcore") || !slices.Contains(h.ReadonlyPaths, "/proc/sys"):
		return "masked paths of /proc"
	case h.CgroupParent != s.Slice:
		return "control group " + h.CgroupParent
	}
	return ""
}

func resources(i container.InspectResponse, s Spec) string {
	h, l, log := i.HostConfig, s.Profile.Limits, s.log()
	core := []*container.Ulimit{{Name: "core"}}
	switch {
	case h.Memory != l.MemoryBytes:
		return fmt.Sprintf("memory %d", h.Memory)
	// -1: the kernel does not count swap; the Pi has none.
	case h.MemorySwap != l.MemoryBytes && h.MemorySwap != -1:
		return fmt.Sprintf("swap %d", h.MemorySwap)
	case h.PidsLimit == nil || *h.PidsLimit != l.Pids:
		return "limit of processes"
	case h.NanoCPUs != l.MilliCPU*1e6:
		return fmt.Sprintf("processor time %d", h.NanoCPUs)
	case len(h.Ulimits) != 1 || *h.Ulimits[0] != *core[0]:
		return "ulimits"
	case h.OomKillDisable != nil && *h.OomKillDisable, h.OomScoreAdj != 0:
		return "out-of-memory rules"
	case !h.RestartPolicy.IsNone():
		return "restart policy " + string(h.RestartPolicy.Name)
	case h.LogConfig.Type != log.Type || !maps.Equal(h.LogConfig.Config, log.Config):
		return "log driver " + h.LogConfig.Type
	}
	return ""
}

func filesystems(i container.InspectResponse, s Spec) string {
	h, p := i.HostConfig, s.Profile
	switch {
	case h.ReadonlyRootfs == p.WritableRoot:
		return "writable root"
	case len(h.Binds)+len(h.VolumesFrom) > 0 || h.VolumeDriver != "":
		return "volumes"
	case len(h.Mounts) != len(p.Mounts) || len(h.Tmpfs) != len(p.Tmpfs):
		return "number of mounts"
	}
	for n, m := range p.Mounts {
		g := h.Mounts[n]
		if g.Type != mount.TypeBind || g.Source != m.Source || g.Target != m.Target || g.ReadOnly == m.Writable {
			return "mount at " + m.Target
		}
	}
	for _, t := range p.Tmpfs {
		if h.Tmpfs[t.Target] != tmpfsOptions(t) {
			return "tmpfs at " + t.Target
		}
	}
	// What the image itself declares as volumes shows only here.
	for _, m := range i.Mounts {
		known := slices.ContainsFunc(p.Mounts, func(x approval.Mount) bool { return x.Target == m.Destination && x.Writable == m.RW }) ||
			slices.ContainsFunc(p.Tmpfs, func(x approval.Tmpfs) bool { return x.Target == m.Destination })
		if !known {
			return "a volume at " + m.Destination
		}
	}
	return ""
}
