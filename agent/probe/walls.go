package probe

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const nonblock = unix.O_NONBLOCK | unix.O_CLOEXEC

// scope is the control group that Docker with systemd, or by itself, gives a container.
var scope = regexp.MustCompile(`/(?:docker-([0-9a-f]{64})\.scope|docker/([0-9a-f]{64}))(?:/|$)`)

// containerOf names the container that a control group says a process is in.
func containerOf(group string) string {
	if m := scope.FindStringSubmatch(group); m != nil {
		return cmp.Or(m[1], m[2])
	}
	return ""
}

// dockerCaps are the capabilities that Docker gives a container by default
// (moby, oci/caps/defaults.go), as a mask of capabilities(7).
const dockerCaps = 0x00000000a80425fb

// walls names the container whose walls a process lives behind: the control
// group says which, and the process has process and mount namespaces that are not
// the machine's and no more capabilities than a container has. A process that root
// has only moved into a container's control group is none of the container's.
func (h Host) walls(dir string) string {
	id := containerOf(optional(h.Proc, dir, "cgroup"))
	if id == "" {
		return ""
	}
	for _, space := range []string{"ns/pid", "ns/mnt"} {
		first, err1 := os.Readlink(filepath.Join(h.Proc, "1", space))
		own, err2 := os.Readlink(filepath.Join(h.Proc, dir, space))
		if err1 != nil || err2 != nil || first == own {
			return ""
		}
	}
	status := optional(h.Proc, dir, "status")
	for _, set := range []string{"CapPrm", "CapEff"} {
		_, rest, ok := strings.Cut(status, "\n"+set+":")
		line, _, _ := strings.Cut(rest, "\n")
		caps, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
		if !ok || err != nil || caps&^dockerCaps != 0 {
			return ""
		}
	}
	return id
}

// imageOf is the image that the runtime's records name for a container, "" where
// they do not know it.
func (h Host) imageOf(id string) string {
	var config dockerConfig
	if !isDigest(id) || decodeLoose(h.docker("containers", id, "config.v2.json"), &config) != nil {
		return ""
	}
	return config.digest()
}

// digest is the container's image: SHA-256 of its configuration, hex.
func (c *dockerConfig) digest() string {
	image, ok := strings.CutPrefix(c.Image, "sha256:")
	if !ok || !isDigest(image) {
		return ""
	}
	return image
}
