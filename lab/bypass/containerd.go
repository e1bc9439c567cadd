package bypass

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"portcullis/verifier/engine"
)

// ctr runs a program in a container of the engine's containerd, in one of its
// namespaces, past the engine, and waits until somebody has ended it.
func (r *Rig) ctr(ctx context.Context, space, id string) error {
	client, err := r.daemon.Ctr()
	if err != nil {
		return err
	}
	root := filepath.Join(r.daemon.Dir, "evil-"+id)
	if err := os.MkdirAll(root, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "probe"), r.probe, 0o755); err != nil {
		return err
	}
	run := func(args ...string) (string, error) {
		out, err := exec.CommandContext(ctx, client, append([]string{"-a", r.daemon.Containerd(), "-n", space}, args...)...).CombinedOutput()
		return string(out), err
	}
	mark := r.events.mark()
	// No files of a standard output: the engine's namespaces have a /run of their own.
	if out, err := run("run", "-d", "--null-io", "--cgroup", r.daemon.Cgroup()+"/"+id, "--rootfs", root, id, "/probe", "wait"); err != nil {
		// It may have been ended before it ran: the shim is there first.
		if r.events.wait(ctx, mark, settle, func(e map[string]any) bool { return e["event"] == "container.ended" && e["container"] == id }) {
			return nil
		}
		return fmt.Errorf("bypass: ctr run: %w: %s", err, out)
	}
	for end := time.Now().Add(20 * time.Second); ctx.Err() == nil && time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		out, err := run("task", "ls")
		if err != nil {
			return fmt.Errorf("bypass: ctr task ls: %w: %s", err, out)
		}
		running := false
		for _, line := range strings.Split(out, "\n") {
			running = running || strings.HasPrefix(line, id+" ") && strings.Contains(line, "RUNNING")
		}
		if !running {
			run("container", "rm", id) // its record; nothing of it runs
			return nil
		}
	}
	return errors.Join(ctx.Err(), fmt.Errorf("%s runs after 20 s", id))
}

// borrowed is ctr under the ID of a container that the guard made and started, and that has ended.
func (r *Rig) borrowed(ctx context.Context) error {
	id, err := r.make(`{"Image":"{image}","Cmd":["say"]}`)
	if err == nil {
		err = r.start(id)
	}
	if err == nil {
		err = r.door.Ended(ctx, id)
	}
	if err != nil {
		return err
	}
	ended := func(c engine.Container) bool { return c.ID == id && c.State == "exited" }
	for over := false; !over; { // it does not say so at once
		list, err := r.door.Containers(ctx)
		if err != nil {
			return err
		}
		over = slices.ContainsFunc(list, ended)
	}
	// The guard has looked at the engine since when it has ended this one.
	if err := r.post(ctx, "/v1.41/containers/create?name=looked", `{"Image":"`+r.image+`"}`); err != nil {
		return err
	}
	if err := r.gone(ctx, "looked"); err != nil {
		return err
	}
	return r.ctr(ctx, "moby", id)
}
