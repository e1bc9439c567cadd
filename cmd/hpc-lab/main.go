// Command hpc-lab is the guest end of the lab's command channel: whatever
// arrives on its virtio-serial port is run as root. It is part of lab images
// of the PC only, which carry a flag in their signed manifest and are shown in
// red, and of development images of the Pi for QEMU. Where the machine has a
// second port for events, as the lab's Pi has, the services' journal goes there.
//
// It also has the few network tools an attacker would bring along, so that a
// test of the firewall needs no foreign program in the PC:
//
//	hpc-lab send tcp|udp ADDRESS:PORT [TEXT]   connect or send, print the answer
//	hpc-lab hold ADDRESS:PORT DURATION         keep a connection, then use it again
//	hpc-lab dns SERVER NAME                    one question
//	hpc-lab frame INTERFACE HEX                one raw frame
//	hpc-lab pipe SOCKET                        standard input to a unix socket, its answer out
//	hpc-lab work DURATION DIR                  keep a processor and a directory busy
//	hpc-lab proxy PID DIR                      take the agent's place, with answers of another machine
//	hpc-lab answer DIR                         on that machine: answer with the agent's probes
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"portcullis/lab/channel"
	"portcullis/lab/proxy"
)

const (
	commandPort = "org.portcullis.lab"
	eventPort   = "org.portcullis.events"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if len(os.Args) > 1 {
		var found bool
		if found, err = proxy.Tool(ctx, os.Stdout, os.Args[1:]); !found {
			err = channel.Tool(ctx, os.Stdin, os.Stdout, os.Args[1:])
		}
	} else {
		err = serve(ctx)
	}
	if err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "hpc-lab:", err)
		os.Exit(1)
	}
}

func serve(ctx context.Context) error {
	port, err := open(ctx, commandPort, time.Minute)
	if err != nil {
		return err
	}
	defer port.Close()
	go events(ctx)
	return channel.Serve(ctx, port, 50*time.Millisecond)
}

// events sends the journal where there is a port for it, which appears together
// with the command port.
func events(ctx context.Context) {
	port, err := open(ctx, eventPort, 2*time.Second)
	if err != nil {
		return
	}
	defer port.Close()
	if err := channel.Journal(ctx, port); err != nil && ctx.Err() == nil {
		fmt.Fprintln(os.Stderr, "hpc-lab:", err)
	}
}

// open waits for a port, which appears when the driver has loaded.
func open(ctx context.Context, name string, limit time.Duration) (*os.File, error) {
	var path string
	for deadline := time.Now().Add(limit); ; {
		var err error
		if path, err = channel.FindPort("/sys", name); err == nil {
			break
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	fd, err := syscall.Open(path, syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}
