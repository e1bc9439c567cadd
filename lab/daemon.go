package lab

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
)

// daemon is one service of the Pi under a supervisor that does what systemd does
// on the Pi: when it ends by itself it is started again after restartAfter.
type daemon struct {
	name  string
	path  string // of the program
	args  []string
	start func(*exec.Cmd) error
	log   string
	note  func(p process) // a new process runs
	event func(name string, fields map[string]any)

	mu      sync.Mutex
	cmd     *exec.Cmd
	stopped bool
	held    bool
	wake    chan struct{}
	done    chan struct{}
}

// restartAfter is systemd's default RestartSec; a service that ends
// tooOften times within tooOftenIn is given up, as StartLimitBurst does.
const (
	restartAfter = 100 * time.Millisecond
	tooOften     = 5
	tooOftenIn   = 10 * time.Second
)

// run starts the daemon and supervises it until stop.
func (d *daemon) run() error {
	d.wake, d.done = make(chan struct{}, 1), make(chan struct{})
	ended, err := d.spawn()
	if err != nil {
		close(d.done)
		return err
	}
	go d.supervise(ended)
	return nil
}

func (d *daemon) spawn() (<-chan error, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	log, err := os.OpenFile(d.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lab: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(d.path, d.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := d.start(cmd); err != nil {
		return nil, fmt.Errorf("lab: starting %s: %w", d.name, err)
	}
	d.cmd = cmd
	d.note(newProcess(d.name, cmd.Process.Pid))
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	return ended, nil
}

func (d *daemon) supervise(ended <-chan error) {
	defer close(d.done)
	var ends []time.Time
	for {
		err := <-ended
		d.mu.Lock()
		stopped := d.stopped
		d.mu.Unlock()
		if stopped {
			return
		}
		d.event("daemon.ended", map[string]any{"daemon": d.name, "reason": fmt.Sprint(err)})
		ends = append(ends, time.Now())
		if n := len(ends); n >= tooOften && ends[n-1].Sub(ends[n-tooOften]) < tooOftenIn {
			d.event("daemon.given-up", map[string]any{"daemon": d.name, "reason": "it ends at once", "detail": lastLine(d.log)})
			return
		}
		if !d.rest() {
			return
		}
		if ended, err = d.spawn(); err != nil {
			d.event("daemon.given-up", map[string]any{"daemon": d.name, "reason": "it cannot be started", "detail": err.Error()})
			return
		}
	}
}

// rest waits before a new start, for ever while held; false means stopped.
func (d *daemon) rest() bool {
	time.Sleep(restartAfter)
	for {
		d.mu.Lock()
		held, stopped := d.held, d.stopped
		d.mu.Unlock()
		if stopped {
			return false
		}
		if !held {
			return true
		}
		<-d.wake
	}
}

// kill9 kills the daemon's process as a crash does. With hold it stays dead until
// release; otherwise the supervisor starts it again.
func (d *daemon) kill9(hold bool) {
	d.mu.Lock()
	d.held = hold
	cmd := d.cmd
	d.mu.Unlock()
	cmd.Process.Signal(syscall.SIGKILL)
}

func (d *daemon) release() {
	d.mu.Lock()
	d.held = false
	d.mu.Unlock()
	d.poke()
}

// stop ends the daemon for good: by SIGTERM, by SIGKILL when that takes over 3 s.
func (d *daemon) stop() {
	d.mu.Lock()
	d.stopped = true
	cmd := d.cmd
	d.mu.Unlock()
	d.poke()
	if cmd == nil {
		return
	}
	cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(3 * time.Second):
		cmd.Process.Signal(syscall.SIGKILL)
		<-d.done
	}
}

func (d *daemon) poke() {
	select {
	case d.wake <- struct{}{}:
	default:
	}
}

// waitReady waits for the daemon's own event ready.
func waitReady(ctx context.Context, log *Log, mark int, name string) error {
	e, err := log.Wait(ctx, mark, func(e Event) bool {
		return e.Name == "ready" && e.Source == name || e.Name == "daemon.given-up" && e.Text("daemon") == name
	})
	if err != nil {
		return fmt.Errorf("lab: %s did not become ready: %w", name, err)
	}
	if e.Name != "ready" {
		return fmt.Errorf("lab: %s: %s: %s", name, e.Text("reason"), e.Text("detail"))
	}
	return nil
}
