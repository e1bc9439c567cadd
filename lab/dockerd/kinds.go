package dockerd

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// KindEnv is the variable that names the engine which Prepare takes, one of Kinds.
const KindEnv = "PORTCULLIS_ENGINE"

// The engines. Machine's is Debian's docker.io as it is installed; Trixie's is that
// of Debian 13, as on the Pi; V29 is the v29 line of Docker, built here. The
// containerd image store is v29's own default.
const (
	Machine       = "machine"
	Trixie        = "trixie"
	V29           = "v29"
	V29Containerd = "v29-containerd"
	// Remapped behind a name is the engine with user namespaces.
	Remapped = "+userns"
)

// The user whose subordinate numbers the containers of a remapped engine have.
const (
	remappedTo  = "nobody:nogroup"
	subordinate = "nobody:200000:65536\nnogroup:200000:65536\n"
)

// FirstSubordinate is the user, and the group, that root in a container of a remapped engine is outside.
const FirstSubordinate = 200000

// kind is an engine that tests can be run against.
type kind struct {
	name     string
	programs func(context.Context) (programs, error)
	store    string // in the words of dockerd's --storage-driver
	remapped bool
	// alone: it has no user namespaces. Docker 29 leaves its containerd store where it is to have them.
	alone bool
}

// programs are where the engine's programs lie.
type programs struct {
	bin  string // a directory that is looked into first, or ""
	root string // a root directory that they run in, or ""
}

var kinds = []kind{
	{name: Machine, programs: machine, store: "overlay2"},
	{name: Trixie, programs: trixie, store: "overlay2"},
	{name: V29, programs: v29, store: "overlay2"},
	{name: V29Containerd, programs: v29, store: "overlayfs", alone: true},
}

// Kinds are the names of all engines, with Remapped behind those that can have user namespaces.
func Kinds() (out []string) {
	for _, k := range kinds {
		out = append(out, k.name)
		if !k.alone {
			out = append(out, k.name+Remapped)
		}
	}
	return out
}

func kindOf(name string) (kind, error) {
	plain, remapped := strings.CutSuffix(name, Remapped)
	if plain == "" {
		plain = Machine
	}
	for _, k := range kinds {
		if k.name == plain && !(k.alone && remapped) {
			k.remapped = remapped
			if remapped {
				k.name += Remapped
			}
			return k, nil
		}
	}
	return kind{}, fmt.Errorf("dockerd: no engine is called %q; known are %s", name, strings.Join(Kinds(), ", "))
}

// machine wants what is installed here.
func machine(context.Context) (programs, error) {
	for program, pkg := range map[string]string{"dockerd": "docker.io", "containerd": "containerd", "runc": "runc", "mount": "mount"} {
		if _, err := exec.LookPath(program); err != nil {
			return programs{}, fmt.Errorf("%s (Debian package %s) is missing: %w", program, pkg, err)
		}
	}
	return programs{}, nil
}
