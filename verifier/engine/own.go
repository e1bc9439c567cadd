package engine

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"
)

// Standing is how a container stands.
type Standing struct {
	Running bool
	Exit    int // status of its first process; of one that runs or never ran 0
}

// Standing asks how a container stands.
func (c *Client) Standing(ctx context.Context, id string) (Standing, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	i, err := c.api.ContainerInspect(ctx, id)
	if err != nil {
		return Standing{}, wrap("inspect", err)
	}
	if i.ContainerJSONBase == nil || i.State == nil {
		return Standing{}, fmt.Errorf("engine: inspect: the engine tells nothing of %s", id)
	}
	return Standing{i.State.Running, i.State.ExitCode}, nil
}

// Ended returns when a container does not run any more, or is gone.
func (c *Client) Ended(ctx context.Context, id string) error {
	ctx, cancel := context.WithCancel(ctx) // the client leaves its request behind otherwise
	defer cancel()
	ended, failed := c.api.ContainerWait(ctx, id, container.WaitConditionNotRunning)
	select {
	case <-ended:
		return nil
	case err := <-failed:
		return wrap("wait", err)
	}
}

// Stop asks a container to end, and ends it after grace, in whole seconds.
func (c *Client) Stop(ctx context.Context, id string, grace time.Duration) error {
	seconds := int(grace / time.Second)
	return wrap("stop", c.api.ContainerStop(ctx, id, container.StopOptions{Timeout: &seconds}))
}

// maxLast bounds what Last reads of a container's output, in bytes.
const maxLast = 4 << 10

// Last returns the last line that a container has written, for people.
func (c *Client) Last(ctx context.Context, id string) (string, error) {
	ctx, cancel := c.within(ctx)
	defer cancel()
	out, err := c.api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: "1"})
	if err != nil {
		return "", wrap("logs", err)
	}
	defer out.Close()
	var text bytes.Buffer
	if _, err := stdcopy.StdCopy(&text, &text, io.LimitReader(out, maxLast)); err != nil && text.Len() == 0 {
		return "", wrap("logs", err)
	}
	last := ""
	for s := bufio.NewScanner(&text); s.Scan(); {
		if s.Text() != "" {
			last = s.Text()
		}
	}
	return last, nil
}
