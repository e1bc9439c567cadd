// Package declared says what each of the Pi's services has when it runs as a container,
// and how such services are told of. It is what an approver signs, what verifierd starts
// and what the portcullis command shows; package services does the starting.
package declared

import (
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"portcullis/internal/config"
	"portcullis/verifier/approval"
)

// Names of the services that can be containers, in the order in which they start:
// attestd asks pxed about every claim.
var Names = config.Contained

// Purpose is what an image is approved for to be started as a service.
func Purpose(service string) string { return "service/" + service }

// Name is the service that a purpose is of.
func Name(purpose string) string { return strings.TrimPrefix(purpose, Purpose("")) }

// Container is how the engine calls a service's container.
func Container(service string) string { return "portcullis-" + service }

// Paths of the Pi. The zero value of none is of use; Standard is the Pi's image.
type Paths struct {
	Config   string // the one configuration file
	RunDir   string
	StateDir string
	Trusted  string // authorities of TLS, for webhooks
}

// Standard paths, which approvals name that are made before the Pi exists.
var Standard = Paths{Config: "/etc/portcullis/portcullis.yaml", RunDir: "/run/portcullis", StateDir: "/var/lib/portcullis", Trusted: "/etc/ssl/certs"}

// Users of the services (systemd/portcullis.sysusers), and the group that reads the PC's images.
const (
	pxeUser     = 971
	attestUser  = 972
	imagesGroup = 970
)

// Profile is all that a service gets: what its unit has in package systemd.
func Profile(service string, p Paths) (approval.Profile, error) {
	run, state := func(n string) string { return filepath.Join(p.RunDir, n) }, func(n string) string { return filepath.Join(p.StateDir, n) }
	read := func(path string) approval.Mount { return approval.Mount{Source: path, Target: path} }
	write := func(path string) approval.Mount { return approval.Mount{Source: path, Target: path, Writable: true} }
	out := approval.Profile{Network: approval.NetworkHost, Limits: approval.Limits{Pids: 256, MilliCPU: 2000}}
	switch service {
	case "pxed":
		// Engines give no capability to another user than 0, so it begins as that one and
		// becomes its own before it does anything, with the unit's two capabilities.
		out.User = fmt.Sprintf("0:%d", imagesGroup)
		out.Capabilities = []string{"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETGID", "CAP_SETUID"}
		out.Command = []string{"/usr/bin/pxed", "--config", p.Config, "--user", fmt.Sprintf("%d:%d", pxeUser, imagesGroup), "--rest", "1m"}
		out.Mounts = []approval.Mount{read(p.Config), read(run("gatewayd")), write(run("pxed")), write(state("pxed")), read(state("images"))}
		out.Limits.MemoryBytes = 512 << 20
	case "attestd":
		out.User = fmt.Sprintf("%d:%d", attestUser, imagesGroup)
		out.Command = []string{"/usr/bin/attestd", "--config", p.Config}
		// Beside the configuration lie policy and webhooks; below RunDir what pi-init says of
		// this start, and the sockets of all that attestd asks.
		out.Mounts = []approval.Mount{read(filepath.Dir(p.Config)), read(p.RunDir), write(run("attestd")), write(state("attestd")), read(state("images")), read(p.Trusted)}
		out.Limits.MemoryBytes = 128 << 20
	default:
		return approval.Profile{}, fmt.Errorf("declared: %.40q is none of %v", service, Names)
	}
	slices.SortFunc(out.Mounts, func(a, b approval.Mount) int { return cmp.Compare(a.Target, b.Target) })
	return out, out.Validate()
}
