// Package channel is the gateway's end of the agent channel: it listens on the
// PC's port, shakes hands, and checks a claim as far as the connection itself
// can tell. attestserver/server is the only one that may call it.
package channel

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// retryListen is the wait while the address does not exist yet.
const retryListen = 250 * time.Millisecond

// Listen listens on address, and waits for the address to appear: the PC's port
// may come up long after attestd. waiting is called once, when it has to wait.
func Listen(ctx context.Context, address string, waiting func(error)) (net.Listener, error) {
	config := net.ListenConfig{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 5 * time.Second, Interval: 2 * time.Second, Count: 3}}
	for {
		l, err := config.Listen(ctx, "tcp4", address)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.EADDRINUSE) {
			return nil, fmt.Errorf("listen for the agent: %w", err)
		}
		if waiting != nil {
			waiting(err)
			waiting = nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(retryListen):
		}
	}
}
