package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"periph.io/x/conn/v3/gpio"

	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/attestserver/action"
	"portcullis/hardware/pins"
	"portcullis/hardware/power"
	"portcullis/internal/clock"
	"portcullis/internal/journal"
	"portcullis/internal/rpc"
	"portcullis/lab"
)

// What the policy of the lab waits for. Scenes that share the lab do other things.
const (
	rebootMe   = "/tmp/reboot-me" // a program of the image from a place that it has not
	rebootTask = "reboot-me"      // a task
)

// rebootPolicy lets that program, and that task, reboot the PC.
func rebootPolicy(s *lab.Settings) {
	s.Policy = `rules:
  - name: fatal
    when: findings.exists(f, f.class == "fatal" && f.detail.contains("` + rebootMe + `"))
    then: [report, reboot]
  - name: task
    when: '"` + rebootTask + `" in tasks'
    then: [report, reboot]
`
	s.Ladder = "agent, relay-power"
}

// rebootLadder has a rule reboot the PC twice: by its agent, and, where the agent
// was stopped, by the power button behind the relay's line.
func rebootLadder() Scene {
	return Scene{
		Name: "reboot-ladder", Title: "a rule reboots the PC through its agent, and through the relay where the agent is stopped", Trusted: true,
		Run: func(ctx context.Context, s *Stage) error {
			pressed, stop, err := s.relay(ctx)
			if err != nil {
				return err
			}
			defer stop()
			began := time.Now()
			err = s.rebootedBy(ctx, action.RungAgent, []func(lab.Event) bool{lab.Is("pc.reset")}, func() error {
				_, err := s.shell(ctx, "cp /usr/bin/sleep "+rebootMe+"; "+rebootMe+" 3600 >/dev/null 2>&1 &")
				return err
			})
			if err != nil {
				return fmt.Errorf("by the agent: %w", err)
			}
			byAgent := time.Since(began)
			if n := pressed.Load(); n != 0 {
				return fmt.Errorf("the relay pressed %d times although the agent obeyed", n)
			}
			began = time.Now()
			down := []func(lab.Event) bool{lab.With("pc.power", "state", "cut"), lab.With("pc.power", "state", "on")}
			err = s.rebootedBy(ctx, action.RungRelayPower, down, func() error {
				if err := s.stopAgent(ctx); err != nil {
					return err
				}
				_, err := s.Run(ctx, "portcullis", "grant", "add", "--run-dir", s.RunDir(), "--json",
					"--to", "203.0.113.10:80/tcp", "--for", "10m", "--task", rebootTask)
				return err
			})
			if err != nil {
				return fmt.Errorf("by the relay: %w", err)
			}
			if n := pressed.Load(); n != 2 {
				return fmt.Errorf("the relay pressed %d times, not to switch off and to switch on", n)
			}
			s.Note("trusted again %.1f s by the agent after an intruder began, %.1f s by the relay after its agent was stopped", byAgent.Seconds(), time.Since(began).Seconds())
			return s.journalled(2)
		},
	}
}

// stopAgent stops it as a debugger does: its connection stays open. The shell finds it
// without starting a program for each process, which takes long on an emulated PC.
func (s *Stage) stopAgent(ctx context.Context) error {
	out, err := s.shell(ctx, `for p in /proc/[0-9]*; do read -r name 2>/dev/null <$p/comm || continue; if [ "$name" = hpc-agent ]; then kill -STOP ${p#/proc/}; echo ${p#/proc/}; fi; done`)
	if err == nil && strings.TrimSpace(out) == "" {
		err = errors.New("there is no agent to stop")
	}
	return err
}

// rebootedBy does what a rule waits for and sees the PC go down by the rung, and come
// back. down is what QEMU has to tell of it, in this order: that the machine really went
// down is not left to what the services believe.
func (s *Stage) rebootedBy(ctx context.Context, rung action.Rung, down []func(lab.Event) bool, cause func() error) error {
	mark := s.Log.Mark()
	ctx, cancel := context.WithTimeout(ctx, BootLimit)
	defer cancel()
	if err := cause(); err != nil {
		return err
	}
	var last time.Time
	for _, is := range down {
		e, err := s.Log.Wait(ctx, mark, func(e lab.Event) bool { return is(e) && !e.Time.Before(last) })
		if err != nil {
			return fmt.Errorf("QEMU does not tell that the PC went down: %w; %s", err, s.Why(mark))
		}
		last = e.Time
	}
	done, err := s.Log.Wait(ctx, mark, lab.With("action.ended", "action", "reboot"))
	if err != nil {
		return fmt.Errorf("the action does not end: %w", err)
	}
	if done.Text("result") != action.ResultDone || !strings.HasPrefix(done.Text("detail"), string(rung)+":") {
		return fmt.Errorf("the action ended %s: %s", done.Text("result"), done.Text("detail"))
	}
	if _, err := s.Log.Wait(ctx, mark, func(e lab.Event) bool {
		return e.Name == "verdict" && e.Text("state") == "trusted" && e.Text("session") != done.Text("session")
	}); err != nil {
		return fmt.Errorf("not trusted again: %w; %s", err, s.Why(mark))
	}
	return s.booted(ctx)
}

// journalled holds the journal of actions to its promise: what ended had begun, each
// rung stands there before and after.
func (s *Stage) journalled(reboots int) error {
	begun, ended, steps := map[string]bool{}, 0, 0
	_, err := journal.ReadFile(s.StateFile("attestd/actions.journal"), func(rec journal.Record) error {
		r, err := action.ParseRecord(rec.Payload)
		if err != nil || r.Action != "reboot" {
			return err
		}
		switch {
		case r.State == "begun":
			begun[r.ID] = true
		case !begun[r.ID]:
			b, err := json.Marshal(r)
			return errors.Join(err, fmt.Errorf("before it began: %s", b))
		case r.State == "ended":
			ended++
		default:
			steps++
		}
		return nil
	})
	if err == nil && (len(begun) != reboots || ended != reboots || steps != 2*(reboots+1)) {
		err = fmt.Errorf("the journal holds %d reboots, %d ends and %d steps", len(begun), ended, steps)
	}
	return err
}

// relay is the service behind the rung relay-power, with the real package pins on a line that
// is wired to QEMU's power.
func (s *Stage) relay(ctx context.Context) (pressed *atomic.Int32, stop func(), err error) {
	line := &powerLine{stage: s, ctx: ctx}
	board, err := pins.Open(pins.Config{Power: "GPIO17"}, func(string) gpio.PinIO { return line }, clock.Real{})
	if err != nil {
		return nil, nil, err
	}
	l, err := rpc.Listen(filepath.Join(s.RunDir(), rpc.RelaySocket), nil)
	if err != nil {
		return nil, nil, errors.Join(err, board.Close())
	}
	ctx, cancel := context.WithCancel(ctx)
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewPowerHandler(power.NewRelay(board, nil)))
	ended := make(chan error, 1)
	go func() { ended <- rpc.Serve(ctx, l, mux) }()
	return &line.pressed, func() { cancel(); <-ended; board.Close() }, nil
}

// forceOff is how long a power button has to be held until the PC is off.
const forceOff = 4 * time.Second

// powerLine is a GPIO line that is the PC's power button, as an ATX board has it: held
// long it takes the power, pressed on a PC that is off it switches on.
type powerLine struct {
	gpio.PinIO // nothing else of it is used
	stage      *Stage
	ctx        context.Context
	high       atomic.Bool
	pressed    atomic.Int32
	held       *time.Timer // takes the power; of the press under way
}

func (l *powerLine) Name() string     { return "GPIO17" }
func (l *powerLine) Read() gpio.Level { return gpio.Level(l.high.Load()) }

// Out is called by the board alone, one press at a time.
func (l *powerLine) Out(level gpio.Level) error {
	was := l.high.Swap(bool(level))
	switch {
	case was == bool(level):
		return nil
	case level == gpio.Low:
		l.held.Stop()
		return nil
	}
	l.pressed.Add(1)
	l.held = time.AfterFunc(forceOff, l.stage.PowerCut)
	if l.stage.PC() == nil {
		return l.stage.PowerOn(l.ctx)
	}
	return nil
}
