package channel

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Run sends one request to the PC behind the chardev socket of QEMU and waits for
// its answer. Callers in several processes take turns by a lock beside the socket.
// r.ID is chosen here.
func Run(ctx context.Context, socket string, r Request) (Response, error) {
	unlock, err := lock(ctx, socket+".lock")
	if err != nil {
		return Response{}, err
	}
	defer unlock()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return Response{}, fmt.Errorf("channel: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	r.ID = rand.Text()[:16]
	// The empty line ends what an earlier host may have left half sent.
	if _, err = conn.Write([]byte("\n")); err == nil {
		err = writeLine(conn, r)
	}
	if err != nil {
		return Response{}, fmt.Errorf("channel: sending: %w", err)
	}
	in := bufio.NewReaderSize(conn, 64<<10)
	for {
		line, err := readLine(in)
		if ctx.Err() != nil {
			return Response{}, fmt.Errorf("channel: no answer from the PC: %w", ctx.Err())
		}
		if err != nil {
			return Response{}, fmt.Errorf("channel: reading the answer: %w", err)
		}
		var resp Response
		if json.Unmarshal(line, &resp) == nil && resp.ID == r.ID {
			return resp, nil
		}
	}
}

// lock takes an exclusive lock on path, waiting until ctx ends.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("channel: lock: %w", err)
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("channel: another command is running: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}
