// Package power is the hands that attestd does not have: the relay over the PC's
// buttons, and the operator's own commands. `portcullis power serve` runs one of the
// two behind a unix socket; which one decides what privileges it needs.
package power

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"connectrpc.com/connect"

	portcullisv1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/hardware"
	"portcullis/hardware/pins"
	"portcullis/internal/event"
)

// Buttons are what a relay presses; *pins.Board is the real one.
type Buttons interface {
	PressPower(ctx context.Context, force bool) error
	PressReset(ctx context.Context) error
}

// Relay presses buttons for its callers.
type Relay struct {
	portcullisv1connect.UnimplementedPowerHandler
	buttons Buttons
	events  *event.Writer
}

// NewRelay answers for b.
func NewRelay(b Buttons, events *event.Writer) *Relay { return &Relay{buttons: b, events: events} }

// Press presses one button. It returns when the button is up again.
func (r *Relay) Press(ctx context.Context, q *connect.Request[portcullisv1.PressRequest]) (*connect.Response[portcullisv1.PressResponse], error) {
	var err error
	name := ""
	switch q.Msg.Button {
	case portcullisv1.Button_BUTTON_RESET:
		name, err = "reset", r.buttons.PressReset(ctx)
	case portcullisv1.Button_BUTTON_POWER:
		name, err = "power", r.buttons.PressPower(ctx, false)
	case portcullisv1.Button_BUTTON_FORCE_OFF:
		name, err = "force-off", r.buttons.PressPower(ctx, true)
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("no button %d", q.Msg.Button))
	}
	var refused *hardware.Error
	reason, detail := "", ""
	if err != nil {
		detail = err.Error()
		if errors.As(err, &refused) {
			reason = string(refused.Reason)
		}
	}
	r.events.Emit("power.press", event.Fields{"button": name, "reason": reason, "detail": detail})
	if err == nil {
		return connect.NewResponse(&portcullisv1.PressResponse{}), nil
	}
	code := connect.CodeInternal
	switch reason {
	case string(pins.ReasonNotWired):
		code = connect.CodeFailedPrecondition
	case string(pins.ReasonBusy):
		code = connect.CodeUnavailable
	}
	return nil, connect.NewError(code, err)
}

// Commands are the operator's: each an absolute path and its arguments. No shell
// reads them; a secret stands in a file that the command reads.
type Commands struct {
	Reset, Off []string
	Timeout    time.Duration
}

// Hook runs the operator's commands, one at a time.
type Hook struct {
	portcullisv1connect.UnimplementedPowerHandler
	c      Commands
	events *event.Writer
	busy   sync.Mutex
}

// NewHook answers with c.
func NewHook(c Commands, events *event.Writer) *Hook { return &Hook{c: c, events: events} }

// maxSaid is how much of a command's output is told, in bytes.
const maxSaid = 512

// RunHook runs the command of the verb and waits until it has ended.
func (h *Hook) RunHook(ctx context.Context, q *connect.Request[portcullisv1.RunHookRequest]) (*connect.Response[portcullisv1.RunHookResponse], error) {
	var argv []string
	verb := ""
	switch q.Msg.Verb {
	case portcullisv1.HookVerb_HOOK_VERB_RESET:
		verb, argv = "reset", h.c.Reset
	case portcullisv1.HookVerb_HOOK_VERB_OFF:
		verb, argv = "off", h.c.Off
	default:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("no verb %d", q.Msg.Verb))
	}
	if len(argv) == 0 {
		return nil, connect.NewError(connect.CodeFailedPrecondition, fmt.Errorf("no command is configured for %s", verb))
	}
	if !h.busy.TryLock() {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New("another command is running"))
	}
	defer h.busy.Unlock()
	said, err := h.run(ctx, argv)
	detail := said
	if err != nil {
		detail = err.Error() + ": " + said
	}
	h.events.Emit("power.hook", event.Fields{"verb": verb, "done": err == nil, "detail": detail})
	if err != nil {
		return nil, connect.NewError(connect.CodeInternal, errors.New(detail))
	}
	return connect.NewResponse(&portcullisv1.RunHookResponse{}), nil
}

// run gives the command a group of its own, which ends with it: what it left behind
// must not press buttons later.
func (h *Hook) run(ctx context.Context, argv []string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, h.c.Timeout)
	defer cancel()
	said := &tail{limit: maxSaid}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	cmd.Dir = "/"
	cmd.Stdout, cmd.Stderr = said, said
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("not over after %s", h.c.Timeout)
	}
	return said.String(), err
}

// tail keeps the last bytes that were written.
type tail struct {
	limit int
	mu    sync.Mutex
	b     []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	t.b = t.b[max(0, len(t.b)-t.limit):]
	return len(p), nil
}

func (t *tail) String() string { t.mu.Lock(); defer t.mu.Unlock(); return string(t.b) }
