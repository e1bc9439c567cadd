package channel

import (
	"context"
	"fmt"
	"io"
	"os/exec"
	"time"
)

// journalUnits are the units whose lines are events. Services that are containers speak
// through the engine; the pattern finds only units that have written something already.
var journalUnits = []string{"gatewayd", "pxed", "attestd", "verifierd", "portcullis-engine", "portcullis-*"}

// Journal writes the events of the guest's services to port, from the start of
// this boot on, until ctx ends: each line as the service has printed it.
func Journal(ctx context.Context, port io.Writer) error {
	args := []string{"--boot", "--follow", "--lines=all", "--output=cat", "--no-pager", "--quiet"}
	for _, u := range journalUnits {
		args = append(args, "--unit="+u+".service")
	}
	// Before journald has written anything there is no boot to follow.
	for out := (&counter{w: port}); ; {
		cmd := exec.CommandContext(ctx, "journalctl", args...)
		cmd.Stdout = out
		cmd.WaitDelay = time.Second
		err := cmd.Run()
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if out.n > 0 {
			return fmt.Errorf("channel: journalctl has ended: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// counter counts what is written.
type counter struct {
	w io.Writer
	n int64
}

func (c *counter) Write(b []byte) (int, error) {
	n, err := c.w.Write(b)
	c.n += int64(n)
	return n, err
}
