package watch

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"periph.io/x/conn/v3/gpio"

	"portcullis/hardware"
	"portcullis/hardware/pins"
	"portcullis/hardware/tamper"
	"portcullis/internal/clock"
	"portcullis/internal/event"
)

// Events of this package.
const (
	EventStarted = "tamper.started" // watching, with what and how far it may go
	EventSource  = "tamper.source"  // a detector cannot be asked, or can be again
)

// sourceRetry is how long a detector that failed is left alone.
const sourceRetry = 10 * time.Second

// Options of Run.
type Options struct {
	Config  *Config
	Journal string                        // path of the tamper journal
	Lookup  func(name string) gpio.PinIO  // lines of the header
	Zymbit  func() (hardware.Root, error) // connects to zymbitd
	Hands   tamper.Hands
	Log     *event.Writer
	Clock   clock.Clock
}

// Run watches until ctx ends. It fails only where it cannot begin: a journal or a line
// that cannot be opened.
func Run(ctx context.Context, o Options) error {
	if !o.Config.Watches() {
		return errors.New("nothing to watch: neither pins.intrusion nor zymbit is set")
	}
	m, err := tamper.Open(o.Journal, o.Config.Policy, o.Hands, o.Log, o.Clock)
	if err != nil {
		return err
	}
	defer m.Close()
	// The relays stay free for "portcullis root press": a line has one owner.
	wired := o.Config.Pins
	wired.Power, wired.Reset = "", ""
	board, err := pins.Open(wired, o.Lookup, o.Clock)
	if err != nil {
		return err
	}
	defer board.Close()
	o.Log.Emit(EventStarted, event.Fields{"intrusion": o.Config.Pins.Intrusion, "zymbit": o.Config.Zymbit,
		"most": string(o.Config.Policy.Most()), "unfinished": m.Unfinished()})
	board.Indicate(hardware.IndicateReady)
	ctx, cancel := context.WithCancel(ctx)
	events := make(chan hardware.Tamper)
	var sources sync.WaitGroup
	defer sources.Wait()
	defer cancel()
	if o.Config.Pins.Intrusion != "" {
		chassis, err := board.Intrusion(ctx)
		if err != nil {
			return err
		}
		sources.Go(func() { forward(ctx, board, chassis, events) })
	}
	if o.Config.Zymbit {
		sources.Go(func() { o.followZymbit(ctx, board, events) })
	}
	err = m.Run(ctx, events)
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// forward hands on events, and shows the alarm first.
func forward(ctx context.Context, board *pins.Board, in <-chan hardware.Tamper, out chan<- hardware.Tamper) {
	for e := range in {
		board.Indicate(hardware.IndicateAlarm)
		select {
		case out <- e:
		case <-ctx.Done():
			return
		}
	}
}

// followZymbit listens to zymbitd, and again when it was restarted. Its silence is told
// once: a module that was pulled is a source that cannot be asked.
func (o *Options) followZymbit(ctx context.Context, board *pins.Board, out chan<- hardware.Tamper) {
	told := false
	for ctx.Err() == nil {
		err := o.listenZymbit(ctx, board, out, func() {
			if told {
				o.Log.Emit(EventSource, event.Fields{"source_name": "zymbit", "result": "listening"})
			}
			told = false
		})
		if ctx.Err() != nil {
			return
		}
		if !told {
			told = true
			o.Log.Emit(EventSource, event.Fields{"source_name": "zymbit", "result": "lost", "error": fmt.Sprint(err)})
			board.Indicate(hardware.IndicateWarning)
		}
		select {
		case <-o.Clock.After(sourceRetry):
		case <-ctx.Done():
		}
	}
}

func (o *Options) listenZymbit(ctx context.Context, board *pins.Board, out chan<- hardware.Tamper, connected func()) error {
	z, err := o.Zymbit()
	if err != nil {
		return err
	}
	defer z.Close()
	in, err := z.Tampers(ctx)
	if err != nil {
		return err
	}
	connected()
	forward(ctx, board, in, out)
	return errors.New("zymbitd hung up")
}
