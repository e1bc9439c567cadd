package power

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/hardware"
	"portcullis/hardware/pins"
	"portcullis/internal/event"
)

func quiet() *event.Writer { return event.NewJSON(io.Discard, "power", time.Now) }

type buttons struct {
	did []string
	err error
}

func (b *buttons) PressPower(_ context.Context, force bool) error {
	b.did = append(b.did, map[bool]string{false: "power", true: "force-off"}[force])
	return b.err
}
func (b *buttons) PressReset(context.Context) error { b.did = append(b.did, "reset"); return b.err }

func TestRelayPressesWhatIsAsked(t *testing.T) {
	b := &buttons{}
	r := NewRelay(b, quiet())
	press := func(x v1.Button) error {
		_, err := r.Press(t.Context(), connect.NewRequest(&v1.PressRequest{Button: x}))
		return err
	}
	for _, x := range []v1.Button{v1.Button_BUTTON_RESET, v1.Button_BUTTON_POWER, v1.Button_BUTTON_FORCE_OFF} {
		if err := press(x); err != nil {
			t.Error(err)
		}
	}
	for _, x := range []v1.Button{0, 9} {
		if err := press(x); connect.CodeOf(err) != connect.CodeInvalidArgument {
			t.Errorf("button %d: %v", x, err)
		}
	}
	if got := strings.Join(b.did, " "); got != "reset power force-off" {
		t.Errorf("did %s", got)
	}
	for reason, code := range map[hardware.Reason]connect.Code{pins.ReasonBusy: connect.CodeUnavailable, pins.ReasonNotWired: connect.CodeFailedPrecondition, pins.ReasonStuck: connect.CodeInternal} {
		b.err = &hardware.Error{Reason: reason, Err: io.EOF}
		if err := press(v1.Button_BUTTON_RESET); connect.CodeOf(err) != code {
			t.Errorf("%s: %v", reason, err)
		}
	}
	if _, err := r.RunHook(t.Context(), connect.NewRequest(&v1.RunHookRequest{})); connect.CodeOf(err) != connect.CodeUnimplemented {
		t.Errorf("the relay runs commands: %v", err)
	}
}

func TestHookRunsTheConfiguredCommandWithoutAShell(t *testing.T) {
	out := filepath.Join(t.TempDir(), "out")
	t.Setenv("SECRET", "of the service")
	script := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(script, []byte("#!/bin/sh\nprintf '%s|%s|%s' \"$1\" \"$2\" \"$SECRET\" > \"$2\"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	h := NewHook(Commands{Reset: []string{script, "$(id) ; true", out}, Timeout: 10 * time.Second}, quiet())
	run := func(verb v1.HookVerb) error {
		_, err := h.RunHook(t.Context(), connect.NewRequest(&v1.RunHookRequest{Verb: verb}))
		return err
	}
	if err := run(v1.HookVerb_HOOK_VERB_RESET); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(out); err != nil || string(b) != "$(id) ; true|"+out+"|" {
		t.Errorf("%q %v", b, err)
	}
	if err := run(v1.HookVerb_HOOK_VERB_OFF); connect.CodeOf(err) != connect.CodeFailedPrecondition {
		t.Errorf("no command: %v", err)
	}
	if err := run(0); connect.CodeOf(err) != connect.CodeInvalidArgument {
		t.Errorf("no verb: %v", err)
	}
}

// A command that hangs ends in time, and with it what it started.
func TestHookThatHangsIsEndedWithItsChildren(t *testing.T) {
	alive := filepath.Join(t.TempDir(), "alive")
	script := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(script, []byte("#!/bin/sh\necho waiting\n(sleep 2; : > "+alive+") &\nsleep 60\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	h := NewHook(Commands{Reset: []string{script}, Off: []string{"/bin/false"}, Timeout: 300 * time.Millisecond}, quiet())
	began := make(chan error, 1)
	go func() {
		_, err := h.RunHook(context.Background(), connect.NewRequest(&v1.RunHookRequest{Verb: v1.HookVerb_HOOK_VERB_RESET}))
		began <- err
	}()
	if err := <-began; err == nil || !strings.Contains(err.Error(), "not over after") || !strings.Contains(err.Error(), "waiting") {
		t.Errorf("%v", err)
	}
	if _, err := h.RunHook(t.Context(), connect.NewRequest(&v1.RunHookRequest{Verb: v1.HookVerb_HOOK_VERB_OFF})); err == nil {
		t.Error("a command that failed is a success")
	}
	time.Sleep(2200 * time.Millisecond) // the child of the command would be done by then
	if _, err := os.Stat(alive); err == nil {
		t.Error("a child outlived its command")
	}
}
