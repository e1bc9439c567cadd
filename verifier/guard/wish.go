package guard

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"

	"portcullis/verifier/approval"
)

// PurposeLabel is the label by which a caller says what a container is for;
// without it the purpose is DefaultPurpose.
const (
	PurposeLabel   = "portcullis.purpose"
	DefaultPurpose = "task"
)

// wish is all that the body of a create can say. Nothing else of it reaches the
// engine: the guard writes a body of its own.
type wish struct {
	image      string
	purpose    string
	user       string
	entrypoint []string
	command    []string
	env        []string
	network    string
	caps       []string
	memory     int64
	pids       int64
	nanoCPUs   int64
	tty        bool
	remove     bool
}

// reader takes one field's value into the wish; false refuses it.
type reader func(w *wish, v any) bool

// fields of a body of POST /containers/create that mean something here. The
// others that exist are in dull: they must say nothing.
var fields = map[string]reader{
	"Image":        func(w *wish, v any) bool { return text(&w.image, v) },
	"User":         func(w *wish, v any) bool { return text(&w.user, v) },
	"Cmd":          func(w *wish, v any) bool { return words(&w.command, v) },
	"Entrypoint":   func(w *wish, v any) bool { return words(&w.entrypoint, v) },
	"Env":          func(w *wish, v any) bool { return words(&w.env, v) },
	"Tty":          func(w *wish, v any) bool { return truth(&w.tty, v) },
	"AttachStdout": anyTruth,
	"AttachStderr": anyTruth,
	"Labels":       labels,

	"HostConfig.AutoRemove":       func(w *wish, v any) bool { return truth(&w.remove, v) },
	"HostConfig.NetworkMode":      func(w *wish, v any) bool { return text(&w.network, v) },
	"HostConfig.CapAdd":           func(w *wish, v any) bool { return words(&w.caps, v) },
	"HostConfig.Memory":           func(w *wish, v any) bool { return count(&w.memory, v) },
	"HostConfig.PidsLimit":        func(w *wish, v any) bool { return v == nil || count(&w.pids, v) },
	"HostConfig.NanoCpus":         func(w *wish, v any) bool { return count(&w.nanoCPUs, v) },
	"HostConfig.CapDrop":          anyWords, // all are dropped anyway
	"HostConfig.ReadonlyRootfs":   anyTruth, // what was approved decides
	"HostConfig.RestartPolicy":    noRestart,
	"HostConfig.MemorySwappiness": func(_ *wish, v any) bool { return v == nil || v == json.Number("-1") },
	"HostConfig.SecurityOpt":      noNewPrivileges,
	// An empty list means something to engines here: nothing is masked.
	"HostConfig.MaskedPaths":   func(_ *wish, v any) bool { return v == nil },
	"HostConfig.ReadonlyPaths": func(_ *wish, v any) bool { return v == nil },
}

// dull fields exist, and are refused unless they say nothing.
var dull = map[string]bool{}

func init() {
	for _, f := range strings.Fields(`Hostname Domainname AttachStdin OpenStdin StdinOnce Volumes WorkingDir OnBuild ExposedPorts
		ArgsEscaped NetworkDisabled MacAddress StopSignal StopTimeout Shell Healthcheck NetworkingConfig`) {
		dull[f] = true
	}
	for _, f := range strings.Fields(`Binds ContainerIDFile LogConfig PortBindings VolumeDriver VolumesFrom ConsoleSize Annotations
		CgroupnsMode Dns DnsOptions DnsSearch ExtraHosts GroupAdd IpcMode Cgroup Links OomScoreAdj PidMode Privileged PublishAllPorts
		StorageOpt Tmpfs UTSMode UsernsMode ShmSize Sysctls Runtime Isolation CpuShares CgroupParent BlkioWeight BlkioWeightDevice
		BlkioDeviceReadBps BlkioDeviceWriteBps BlkioDeviceReadIOps BlkioDeviceWriteIOps CpuPeriod CpuQuota CpuRealtimePeriod
		CpuRealtimeRuntime CpusetCpus CpusetMems Devices DeviceCgroupRules DeviceRequests KernelMemory KernelMemoryTCP
		MemoryReservation MemorySwap OomKillDisable Ulimits CpuCount CpuPercent IOMaximumIOps IOMaximumBandwidth Mounts Init`) {
		dull["HostConfig."+f] = true
	}
}

// parseWish reads the body of a create.
func parseWish(body []byte) (wish, error) {
	o, err := parseObject(body)
	if err != nil {
		return wish{}, err
	}
	w := wish{purpose: DefaultPurpose}
	if err := w.read("", o); err != nil {
		return wish{}, err
	}
	if w.image == "" {
		return wish{}, refuse(ReasonField, "no Image")
	}
	names := map[string]bool{}
	for _, v := range w.env {
		name, _, ok := strings.Cut(v, "=")
		if !ok || names[name] {
			return wish{}, refuse(ReasonField, "Env: %.80q has no value, or is there twice", name)
		}
		names[name] = true
	}
	return w, nil
}

func (w *wish) read(prefix string, o object) error {
	for key, v := range o {
		name := prefix + key
		if name == "HostConfig" {
			if v == nil {
				continue
			}
			host, ok := v.(object)
			if !ok {
				return refuse(ReasonField, "HostConfig is no object")
			}
			if err := w.read("HostConfig.", host); err != nil {
				return err
			}
			continue
		}
		read := fields[name]
		switch {
		case name == "NetworkingConfig":
			if !plainNetworking(v) {
				return refuse(ReasonField, "NetworkingConfig says more than a network's name")
			}
		case read != nil && !read(w, v):
			return refuse(ReasonField, "%.80s is not of a form that can be asked for", name)
		case read == nil && dull[name] && !unset(v):
			return refuse(ReasonField, "%.80s cannot be asked for; what was approved decides", name)
		case read == nil && !dull[name]:
			return refuse(ReasonField, "%.80q is no field", name)
		}
	}
	return nil
}

// plainNetworking lets through what docker run writes for its network: the name
// with nothing said about it. The name that counts is HostConfig.NetworkMode.
func plainNetworking(v any) bool {
	if v == nil {
		return true
	}
	o, ok := v.(object)
	if !ok || len(o) > 1 {
		return false
	}
	for key, v := range o {
		ends, isObject := v.(object)
		if key != "EndpointsConfig" || v != nil && !isObject {
			return false
		}
		for _, end := range ends {
			if !unset(end) {
				return false
			}
		}
	}
	return true
}

func text(to *string, v any) bool {
	s, ok := v.(string)
	*to = s
	return ok && len(s) <= 1024
}

// words is a list of texts, or null.
func words(to *[]string, v any) bool {
	if v == nil {
		return true
	}
	list, ok := v.([]any)
	if !ok || len(list) > 256 {
		return false
	}
	for _, x := range list {
		s, ok := x.(string)
		if !ok || len(s) > 4096 || strings.ContainsRune(s, 0) {
			return false
		}
		*to = append(*to, s)
	}
	return true
}

func truth(to *bool, v any) bool {
	b, ok := v.(bool)
	*to = b
	return ok
}

func count(to *int64, v any) bool {
	n, ok := v.(json.Number)
	if !ok {
		return false
	}
	i, err := n.Int64()
	*to = i
	return err == nil && i >= 0
}

func anyTruth(_ *wish, v any) bool { return truth(new(bool), v) }
func anyWords(_ *wish, v any) bool { return words(new([]string), v) }

func noRestart(_ *wish, v any) bool {
	o, ok := v.(object)
	if !ok {
		return v == nil
	}
	for key, x := range o {
		if !(key == "Name" && (x == "no" || x == "") || key == "MaximumRetryCount" && unset(x)) {
			return false
		}
	}
	return true
}

func noNewPrivileges(_ *wish, v any) bool {
	var list []string
	if !words(&list, v) {
		return false
	}
	return !slices.ContainsFunc(list, func(s string) bool { return s != "no-new-privileges" && s != "no-new-privileges:true" })
}

var purposeForm = regexp.MustCompile(`^[a-z0-9][a-z0-9._/-]{0,127}$`)

func labels(w *wish, v any) bool {
	if v == nil {
		return true
	}
	o, ok := v.(object)
	if !ok {
		return false
	}
	for key, x := range o {
		s, ok := x.(string)
		if key != PurposeLabel || !ok || !purposeForm.MatchString(s) {
			return false
		}
		w.purpose = s
	}
	return true
}

// profile fills what the caller did not say with what was approved. What the
// caller asks beyond it stays in, for the approvals to refuse. entrypoint is the
// image's own, which arguments alone are given to.
func (w wish) profile(approved approval.Profile, entrypoint []string) approval.Profile {
	p := approved
	if w.user != "" {
		p.User = w.user
	}
	if w.network != "" && w.network != "default" {
		p.Network = w.network
	}
	if w.caps != nil {
		p.Capabilities = nil
		for _, c := range w.caps {
			p.Capabilities = append(p.Capabilities, "CAP_"+strings.TrimPrefix(strings.ToUpper(c), "CAP_"))
		}
		slices.Sort(p.Capabilities)
	}
	if w.memory > 0 {
		p.Limits.MemoryBytes = w.memory
	}
	if w.pids > 0 {
		p.Limits.Pids = w.pids
	}
	if w.nanoCPUs > 0 {
		// What is no whole thousandth of a core is rounded up, for the approvals to see it.
		p.Limits.MilliCPU = (w.nanoCPUs-1)/1e6 + 1
	}
	if len(w.entrypoint)+len(w.command) > 0 {
		if w.entrypoint != nil {
			entrypoint = w.entrypoint
		}
		p.Command = append(slices.Clone(entrypoint), w.command...)
	}
	p.AnyCommand = false
	p.Env = slices.Clone(w.env)
	slices.Sort(p.Env)
	for _, v := range approved.Env {
		if name, _, ok := strings.Cut(v, "="); ok && !slices.ContainsFunc(p.Env, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			p.Env = append(p.Env, v)
		}
	}
	slices.Sort(p.Env)
	return p
}
