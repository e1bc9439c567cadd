package expect

import (
	"io"
	"slices"
	"strings"

	"portcullis/attestserver/protocol"
)

// Container is the twin of probe.Container: only images that the configuration
// approves may run, and without power over the machine.
type Container struct {
	user
	approved []string // SHA-256 of image configurations, hex
}

// Name implements protocol.Expectation.
func (*Container) Name() string { return protocol.OpContainer }

// Params implements protocol.Expectation.
func (*Container) Params(io.Reader, *protocol.ImageState) ([]byte, error) { return protocol.None, nil }

// Judge implements protocol.Expectation.
func (e *Container) Judge(in protocol.JudgeInput) []protocol.Finding {
	j := &judge{op: e.Name()}
	var d protocol.ContainerData
	if !j.read(in, &d) {
		return j.list
	}
	for _, c := range d.Containers {
		switch {
		case c.Image == "":
			j.fatal(ReasonContainerUnknown, "container %.12s is not in the runtime's records", c.ID)
			continue
		case !c.Genuine:
			j.fatal(ReasonContainerImage, "container %.12s: what is stored as image %.12s has another digest", c.ID, c.Image)
		case !slices.Contains(e.approved, c.Image):
			j.fatal(ReasonContainerUnapproved, "container %.12s of image %s runs %q", c.ID, c.Image, c.Command)
		}
		if len(c.Privileged) > 0 {
			j.fatal(ReasonContainerPrivileged, "container %.12s of image %.12s: %s", c.ID, c.Image, strings.Join(c.Privileged, ", "))
		}
		if len(c.Written) > 0 {
			j.add(protocol.Info, ReasonContainerWritten, "container %.12s has written programs: %s", c.ID, strings.Join(c.Written, ", "))
		}
	}
	for _, s := range d.Strays {
		j.fatal(ReasonContainerUnknown, "process %d (%s) in %s has a process namespace of its own", s.PID, s.Comm, s.CGroup)
	}
	return j.list
}
