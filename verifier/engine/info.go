package engine

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/docker/api/types/system"

	"portcullis/verifier/gate"
)

// Info is what the guard needs to know of an engine.
type Info struct {
	Version    string // of the engine, "20.10.24+dfsg1"
	API        string // the newest that it speaks, "1.41"
	Store      string // of images: "overlay2", or containerd's snapshotter: "overlayfs"
	Containerd bool   // the containerd image store: images are called by their manifest's digest
	Seccomp    bool   // system calls are filtered by the engine's own profile
	Userns     bool   // root in a container is nobody outside
	FirstUID   int    // who root in a container is outside; 0 without Userns
	FirstGID   int
	Rootless   bool   // the engine itself is nobody outside
	Root       string // data root
	Systemd    bool   // control groups are made by systemd
	Gate       bool   // it has the runtime that asks before a program runs
	Missing    []string
}

// Info asks the engine about itself. Missing names the limits that its kernel
// cannot enforce.
func (c *Client) Info(ctx context.Context) (Info, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	i, err := c.api.Info(ctx)
	if err != nil {
		return Info{}, wrap("info", err)
	}
	v, err := c.api.ServerVersion(ctx)
	if err != nil {
		return Info{}, wrap("version", err)
	}
	out := Info{Version: i.ServerVersion, API: v.APIVersion, Store: i.Driver, Containerd: usesContainerd(i), Root: i.DockerRootDir, Systemd: i.CgroupDriver == "systemd"}
	_, out.Gate = i.Runtimes[gate.Runtime]
	for _, s := range i.SecurityOptions {
		out.Seccomp = out.Seccomp || strings.HasPrefix(s, "name=seccomp") && !strings.Contains(s, "unconfined")
		out.Userns = out.Userns || strings.HasPrefix(s, "name=userns")
		out.Rootless = out.Rootless || strings.HasPrefix(s, "name=rootless")
	}
	if out.Userns {
		if out.FirstUID, out.FirstGID, err = firstOf(i.DockerRootDir); err != nil {
			return Info{}, err
		}
	}
	for name, has := range map[string]bool{"memory": i.MemoryLimit, "pids": i.PidsLimit, "cpu": i.CPUCfsQuota} {
		if !has {
			out.Missing = append(out.Missing, name)
		}
	}
	return out, nil
}

func usesContainerd(i system.Info) bool {
	for _, s := range i.DriverStatus {
		if s[1] == "io.containerd.snapshotter.v1" {
			return true
		}
	}
	return false
}

// firstOf reads whom an engine with user namespaces maps root to: such an engine keeps
// its data in a directory of the name UID.GID below its data root, and says so nowhere else.
func firstOf(root string) (uid, gid int, err error) {
	u, g, _ := strings.Cut(filepath.Base(root), ".")
	uid, uerr := strconv.Atoi(u)
	gid, gerr := strconv.Atoi(g)
	if err := errors.Join(uerr, gerr); err != nil || uid <= 0 || gid <= 0 {
		return 0, 0, fmt.Errorf("engine: user namespaces with the data root %.200q, which has not the form …/UID.GID", root)
	}
	return uid, gid, nil
}

// Layers are the directories that a container is put together from.
type Layers struct {
	Lower []string // the highest first; the first is the engine's own; nil where the store does not say
	Upper string   // what the container writes
}

// Layers tells where the files of a container lie, in the overlay2 store and in
// containerd's with its overlayfs snapshotter. Where the store is not put together as an
// engine does it, it returns ErrStore.
func (c *Client) Layers(ctx context.Context, id string) (Layers, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	i, err := c.api.ContainerInspect(ctx, id)
	if err != nil {
		return Layers{}, wrap("layers", err)
	}
	if i.ContainerJSONBase != nil && i.GraphDriver.Name == "overlay2" && i.GraphDriver.Data["LowerDir"] != "" {
		l := Layers{Lower: strings.Split(i.GraphDriver.Data["LowerDir"], ":"), Upper: i.GraphDriver.Data["UpperDir"]}
		if err := overlay2(l); err != nil {
			return Layers{}, err
		}
		return l, nil
	}
	s, err := c.snapshots(ctx)
	if err != nil {
		return Layers{}, err
	}
	if err := mountPlace(filepath.Join(s.mounts, i.ID)); err != nil {
		return Layers{}, err
	}
	return s.layers(ctx, i.ID)
}

// ImageLayers names the directories in which an image was unpacked, the lowest first, as the
// overlay2 store tells it; nil with another store, which tells it of containers alone. That is
// no more than what the engine says: before a start Layers is asked.
func (c *Client) ImageLayers(ctx context.Context, id string) ([]string, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	i, err := c.api.ImageInspect(ctx, id)
	if err != nil {
		return nil, wrap("image", err)
	}
	if i.GraphDriver.Name != "overlay2" {
		return nil, nil
	}
	return imageDirs(i.GraphDriver.Data), nil
}

// imageDirs reads what overlay2 says of an image: its highest layer, and those below it with the
// highest first.
func imageDirs(data map[string]string) []string {
	if data["UpperDir"] == "" {
		return nil
	}
	dirs := []string{data["UpperDir"]}
	if lower := data["LowerDir"]; lower != "" {
		dirs = append(dirs, strings.Split(lower, ":")...)
	}
	slices.Reverse(dirs)
	return dirs
}

// LayersTold is nil when Layers can answer for the containers of this engine.
func (c *Client) LayersTold(ctx context.Context, i Info) error {
	ctx, cancel := c.within(ctx)
	defer cancel()
	if !i.Containerd {
		if i.Store != "overlay2" {
			return fmt.Errorf("engine: the store %.40q does not say where its layers lie; overlay2 and containerd's overlayfs do", i.Store)
		}
		return nil
	}
	s, err := c.snapshots(ctx)
	if err != nil {
		return err
	}
	// Nothing has this name, and who says so answers.
	if _, err := s.layers(ctx, "portcullis-asks"); !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("%w (the verifier has to reach %s)", err, s.socket)
	}
	return nil
}

func (c *Client) snapshots(ctx context.Context) (snapshots, error) {
	i, err := c.api.Info(ctx)
	if err != nil {
		return snapshots{}, wrap("info", err)
	}
	// Other snapshotters put a container together from other things than directories.
	if !usesContainerd(i) || i.Driver != "overlayfs" || i.Containerd == nil || !filepath.IsAbs(i.Containerd.Address) || i.Containerd.Namespaces.Containers == "" {
		return snapshots{}, fmt.Errorf("engine: the store %.40q does not say where its layers lie", i.Driver)
	}
	return snapshots{socket: i.Containerd.Address, space: i.Containerd.Namespaces.Containers, snapshotter: i.Driver,
		mounts: filepath.Join(i.DockerRootDir, "rootfs", i.Driver)}, nil
}
