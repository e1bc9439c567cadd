// Command hpc-lab is the guest end of the lab's command channel: whatever
// arrives on its virtio-serial port is run as root. It is part of lab images
// only, which carry a flag in their signed manifest and are shown in red.
//
// It also has the few network tools an attacker would bring along, so that a
// test of the firewall needs no foreign program in the PC:
//
//	hpc-lab send tcp|udp ADDRESS:PORT [TEXT]   connect or send, print the answer
//	hpc-lab hold ADDRESS:PORT DURATION         keep a connection, then use it again
//	hpc-lab dns SERVER NAME                    one question
//	hpc-lab frame INTERFACE HEX                one raw frame
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"portcullis/lab/channel"
)

const portName = "org.portcullis.lab"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) > 1 {
		err = channel.Tool(ctx, os.Stdout, os.Args[1:])
	} else {
		err = serve(ctx)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "hpc-lab:", err)
		os.Exit(1)
	}
}

// serve waits for the port, which appears when the driver has loaded.
func serve(ctx context.Context) error {
	var path string
	for deadline := time.Now().Add(time.Minute); ; {
		var err error
		if path, err = channel.FindPort("/sys", portName); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open %s: %w", path, err)
	}
	port := os.NewFile(uintptr(fd), path)
	defer port.Close()
	return channel.Serve(ctx, port, 50*time.Millisecond)
}
