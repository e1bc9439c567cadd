package pi

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"time"

	"portcullis/lab/channel"
	"portcullis/lab/qemu"
)

// ErrOff is a question to a machine that has no power any more.
var ErrOff = errors.New("the Pi is off")

// startLimit bounds the start of QEMU and swtpm at one power-on.
const startLimit = time.Minute

// Machine is a running Pi. Its methods may be called concurrently.
type Machine struct {
	cfg     Config
	program string
	console *Console
	done    chan struct{}

	mu     sync.Mutex
	cur    *run
	boots  int
	killed bool
	err    error
}

// run is one QEMU with its TPM: from power-on to the guest's next reset.
type run struct {
	cmd  *exec.Cmd
	tpm  *qemu.TPM
	qmp  *qemu.QMP
	done chan struct{} // QEMU has ended
}

// Start powers the machine on. The context bounds the start only.
func Start(ctx context.Context, cfg Config) (*Machine, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	program, err := qemu.Find(ctx, "qemu-system-aarch64", "qemu-system-arm")
	if err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, program: program, done: make(chan struct{})}
	if m.console, err = newConsole(consoleSocket(cfg.Dir)); err != nil {
		return nil, err
	}
	if err := m.boot(ctx, "power-on"); err != nil {
		m.console.close()
		return nil, err
	}
	go m.supervise()
	return m, nil
}

// boot runs the firmware once: it looks at the card as it is now.
func (m *Machine) boot(ctx context.Context, reason string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	args, partition, err := m.args()
	if err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.killed {
		return ErrOff
	}
	resumes := m.cfg.Resume != "" && m.boots == 0
	if resumes {
		args = append(args, "-incoming", fileURI(m.cfg.Resume))
	}
	r, err := m.power(ctx, args)
	if err != nil {
		return err
	}
	if resumes {
		if err := r.resumed(ctx); err != nil {
			err = fmt.Errorf("%w; QEMU said: %s", err, m.said())
			r.end()
			return err
		}
	}
	m.cur = r
	m.boots++
	m.cfg.Power(Boot{Number: m.boots, Partition: partition, Reason: reason, PIDs: r.pids()})
	return nil
}

// power starts the TPM and QEMU.
func (m *Machine) power(ctx context.Context, args []string) (r *run, err error) {
	r = &run{done: make(chan struct{})}
	if m.cfg.TPM != "" {
		if r.tpm, err = qemu.StartTPM(ctx, m.cfg.TPM, tpmSocket(m.cfg.Dir), m.cfg.Start); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(filepath.Join(m.cfg.Dir, "qemu.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		r.tpm.Stop()
		return nil, fmt.Errorf("pi: log: %w", err)
	}
	defer log.Close()
	os.Remove(QMPSocket(m.cfg.Dir))
	os.Remove(ChannelSocket(m.cfg.Dir))
	r.cmd = exec.Command(m.program, args...)
	r.cmd.Stdout, r.cmd.Stderr = log, log
	r.cmd.SysProcAttr = qemu.OwnGroup()
	if err := m.cfg.Start(r.cmd); err != nil {
		r.tpm.Stop()
		return nil, fmt.Errorf("pi: starting %s: %w", m.program, err)
	}
	go func() {
		r.cmd.Wait()
		close(r.done)
	}()
	if r.qmp, err = qemu.DialQMP(ctx, QMPSocket(m.cfg.Dir), r.done); err == nil {
		select {
		case <-m.console.connected:
		case <-r.done:
			err = errors.New("pi: QEMU ended at once")
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	if err != nil {
		r.end()
		return nil, fmt.Errorf("%w; QEMU said: %s", err, m.said())
	}
	return r, nil
}

// end takes the power away.
func (r *run) end() {
	r.cmd.Process.Kill()
	<-r.done
	r.tpm.Stop()
	if r.qmp != nil {
		r.qmp.Close()
	}
}

// wait returns when the guest has reset or shut itself down, or QEMU has ended.
// QEMU stands still then (-action shutdown=pause) so that the event is never lost.
func (r *run) wait() (reason string) {
	for e := range r.qmp.Events() {
		if e.Name == "SHUTDOWN" {
			return shutdownReason(e.Data)
		}
	}
	return "killed"
}

// supervise starts the machine again whenever the guest resets it.
func (m *Machine) supervise() {
	defer close(m.done)
	defer m.console.close()
	for {
		m.mu.Lock()
		r := m.cur
		m.mu.Unlock()
		reason := r.wait()
		m.mu.Lock()
		killed := m.killed
		m.mu.Unlock()
		said := ""
		if reason == "killed" && !killed {
			said = m.said()
		}
		r.end()
		switch {
		case killed, reason == "guest-shutdown":
			return
		case reason == "guest-reset", reason == "host-qmp-system-reset":
		default:
			m.fail(fmt.Errorf("pi: QEMU ended (%s): %s", reason, said))
			return
		}
		if err := m.boot(context.Background(), reason); err != nil {
			if !errors.Is(err, ErrOff) {
				m.fail(err)
			}
			return
		}
	}
}

func (m *Machine) fail(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.err = err
}

// Kill takes the power away at once and waits until nothing of the machine runs.
// The card and the TPM's state stay as they were at this moment.
func (m *Machine) Kill() {
	m.mu.Lock()
	m.killed = true
	if m.cur != nil {
		m.cur.cmd.Process.Kill()
	}
	m.mu.Unlock()
	<-m.done
}

// Done is closed when the machine has no power any more: after Kill, after the
// guest has shut down, or when the firmware found nothing to boot (Err).
func (m *Machine) Done() <-chan struct{} { return m.done }

// Err tells, after Done, why the machine has ended; nil after Kill and shutdown.
func (m *Machine) Err() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.err
}

// Boots counts the runs of the firmware, the first included.
func (m *Machine) Boots() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.boots
}

// PIDs returns the processes of the machine as it runs now.
func (m *Machine) PIDs() map[string]int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.cur.pids()
}

func (r *run) pids() map[string]int {
	pids := map[string]int{"pi-qemu": r.cmd.Process.Pid}
	if r.tpm != nil {
		pids["pi-swtpm"] = r.tpm.PID()
	}
	return pids
}

// Console returns what the machine has written on its serial line.
func (m *Machine) Console() *Console { return m.console }

// Expect waits for text that matches the regular expression, after what an
// earlier Expect has matched, and returns the match with its groups. The error
// holds an *ExpectError with the end of the console.
func (m *Machine) Expect(ctx context.Context, pattern string) ([]string, error) {
	re, err := regexp.Compile(pattern)
	if err != nil {
		return nil, fmt.Errorf("pi: %w", err)
	}
	match, err := m.console.expect(ctx, re)
	if errors.Is(err, ErrOff) {
		err = errors.Join(err, m.Err())
	}
	return match, err
}

// Send types text at the console, as it is: end a line with "\n".
func (m *Machine) Send(text string) error { return m.console.send(text) }

// Exec runs a command as root in the Pi. Only a development image for QEMU has
// the channel; it answers early in the start of systemd. The command is killed
// with the context's deadline, after a minute where it has none.
func (m *Machine) Exec(ctx context.Context, argv ...string) (channel.Response, error) {
	r := channel.Request{Argv: argv}
	if end, ok := ctx.Deadline(); ok {
		r.LimitMS = max(1, time.Until(end).Milliseconds())
	}
	return channel.Run(ctx, ChannelSocket(m.cfg.Dir), r)
}

// Output runs a command as root in the Pi and returns what it wrote; it fails
// when the command does.
func (m *Machine) Output(ctx context.Context, argv ...string) (string, error) {
	r, err := m.Exec(ctx, argv...)
	if err == nil && r.Exit != 0 {
		err = fmt.Errorf("pi: %v: exit %d: %s%s", argv, r.Exit, r.Stderr, r.Error)
	}
	return string(r.Stdout), err
}

// Reset presses the reset button: the firmware runs again.
func (m *Machine) Reset(ctx context.Context) error {
	m.mu.Lock()
	q := m.cur.qmp
	m.mu.Unlock()
	_, err := q.Execute(ctx, "system_reset", nil)
	return err
}

// PowerOff shuts the Pi down in order, through the command channel, and waits.
func (m *Machine) PowerOff(ctx context.Context) error {
	_, err := m.Output(ctx, target("poweroff")...)
	select {
	case <-m.done:
		return m.Err()
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("pi: it does not shut down: %w", ctx.Err()), err)
	}
}

// Reboot has the Pi shut itself down in order and start again, through the command
// channel. It returns when the firmware has run again.
func (m *Machine) Reboot(ctx context.Context) error {
	before := m.Boots()
	_, err := m.Output(ctx, target("reboot")...)
	for m.Boots() == before {
		select {
		case <-m.done:
			return errors.Join(ErrOff, m.Err())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("pi: it does not reboot: %w", ctx.Err()), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	return nil
}

// target is the command that starts systemd's poweroff or reboot without asking
// logind, which the Pi does not have. Its own answer may be lost in the shutdown.
func target(name string) []string {
	return []string{"systemctl", "start", "--no-block", "--job-mode=replace-irreversibly", name + ".target"}
}

// said is the end of what QEMU itself has printed.
func (m *Machine) said() string {
	b, err := os.ReadFile(filepath.Join(m.cfg.Dir, "qemu.log"))
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-600):])
}
