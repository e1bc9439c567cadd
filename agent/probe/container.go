package probe

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"portcullis/attestserver/protocol"
)

// Container lists the containers that run: which image each was made of, what
// it may do beyond its walls, what it has written; and the processes that live
// in a process namespace of their own and belong to none.
//
// It finds a task that nobody approved, a container with rights over the machine
// (privileged, the host's namespaces, devices, directories), and a container
// that was made by hand behind the runtime's back.
//
// It cannot see what an approved image does, nor a layer whose files were
// changed on the disk: the image's configuration names them, and only that is
// checked here.
type Container struct{ Host }

// Name implements protocol.Probe.
func (*Container) Name() string { return protocol.OpContainer }

// Run implements protocol.Probe.
func (p *Container) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	if err := protocol.CheckNone(params); err != nil {
		return protocol.Output{}, err
	}
	var d protocol.ContainerData
	running, err := p.inContainers(ctx, &d)
	// What the runtime starts inside of a container that runs is in its walls a moment
	// before it is in its control group.
	for try := 0; err == nil && len(d.Strays) > 0 && try < strayTries; try++ {
		select {
		case <-ctx.Done():
		case <-time.After(strayWait):
		}
		before := d.Strays
		d.Strays = nil
		if running, err = p.inContainers(ctx, &d); err == nil {
			d.Strays = slices.DeleteFunc(d.Strays, func(s protocol.Stray) bool {
				return !slices.ContainsFunc(before, func(o protocol.Stray) bool { return o.PID == s.PID })
			})
		}
	}
	if err != nil {
		return protocol.Output{}, err
	}
	for id, pids := range running {
		if err := alive(ctx); err != nil {
			return protocol.Output{}, err
		}
		if len(d.Containers) == protocol.MaxContainers {
			return protocol.Output{}, fmt.Errorf("more than %d containers", protocol.MaxContainers)
		}
		c := p.container(id)
		if c.Image == "" && !slices.ContainsFunc(pids, func(pid int) bool {
			return containerOf(optional(p.Proc, strconv.Itoa(pid), "cgroup")) == id
		}) {
			continue // it has ended, and the runtime has forgotten it
		}
		d.Containers = append(d.Containers, c)
	}
	slices.SortFunc(d.Containers, func(a, b protocol.Container) int { return cmp.Compare(a.ID, b.ID) })
	return answer(key, p.Name(), params, d)
}

// A process behind walls that belongs to no container is looked at again that often.
const (
	strayTries = 4
	strayWait  = 250 * time.Millisecond
)

// inContainers walks all processes: containers with their processes, and strays.
func (p *Container) inContainers(ctx context.Context, d *protocol.ContainerData) (map[string][]int, error) {
	first, err := os.Readlink(filepath.Join(p.Proc, "1/ns/pid"))
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(p.Proc)
	if err != nil {
		return nil, err
	}
	running := map[string][]int{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if err := alive(ctx); err != nil {
			return nil, err
		}
		space, err := os.Readlink(filepath.Join(p.Proc, e.Name(), "ns/pid"))
		if err != nil {
			continue // it has ended
		}
		group := optional(p.Proc, e.Name(), "cgroup")
		if id := containerOf(group); id != "" {
			running[id] = append(running[id], pid)
			continue
		}
		if space != first && len(d.Strays) < protocol.MaxContainers {
			d.Strays = append(d.Strays, protocol.Stray{PID: pid, Comm: optional(p.Proc, e.Name(), "comm"), CGroup: group})
		}
	}
	return running, nil
}

// docker is where the runtime keeps its records, as process 1 sees it.
func (h Host) docker(parts ...string) string {
	return filepath.Join(append([]string{h.Proc, "1/root/var/lib/docker"}, parts...)...)
}

func (p *Container) container(id string) protocol.Container {
	c := protocol.Container{ID: id}
	var config dockerConfig
	var host dockerHost
	if decodeLoose(p.docker("containers", id, "config.v2.json"), &config) != nil || decodeLoose(p.docker("containers", id, "hostconfig.json"), &host) != nil {
		return c
	}
	image := config.digest()
	if image == "" {
		return c
	}
	c.Image, c.Command = image, clean(strings.Join(append([]string{config.Path}, config.Args...), " "))
	if b, err := read(p.docker("image/overlay2/imagedb/content/sha256", image)); err == nil {
		sum := sha256.Sum256(b)
		c.Genuine = hex.EncodeToString(sum[:]) == image
	}
	c.Command = c.Command[:min(len(c.Command), 256)]
	c.Privileged = privileges(&config, &host)
	c.Privileged = c.Privileged[:min(len(c.Privileged), protocol.MaxPrivileges)]
	if layer := optional(p.docker("image/overlay2/layerdb/mounts", id, "mount-id")); isLayer(layer) {
		c.Upper, c.Written = upperLayer(p.docker("overlay2", layer, "diff"))
	}
	return c
}

// maxUpper bounds how many names of a container's upper layer are read.
const maxUpper = 20000

// errEnough ends a walk.
var errEnough = errors.New("enough")

// upperLayer is a digest over what a container has written, and its programs.
func upperLayer(dir string) (digest string, programs []string) {
	h := sha256.New()
	n := 0
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		if n++; n > maxUpper {
			return errEnough
		}
		st, err := e.Info()
		if err != nil {
			return nil
		}
		rel := strings.TrimPrefix(path, dir)
		h.Write(binary.BigEndian.AppendUint64([]byte(rel+"\x00"), uint64(st.Mode())))
		if st.Mode().IsRegular() {
			h.Write(binary.BigEndian.AppendUint64(nil, uint64(st.Size())))
			if st.Mode()&0o111 != 0 && len(programs) < protocol.MaxWritten {
				programs = append(programs, clean(rel))
			}
		}
		return nil
	})
	if err != nil {
		return "", programs
	}
	return hex.EncodeToString(h.Sum(nil)), programs
}

func isDigest(s string) bool {
	b, err := hex.DecodeString(s)
	return err == nil && len(b) == 32
}

var layerName = regexp.MustCompile(`^[0-9a-f]{64}$`)

func isLayer(s string) bool { return layerName.MatchString(s) }
