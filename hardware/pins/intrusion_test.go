package pins

import (
	"context"
	"testing"
	"time"

	"periph.io/x/conn/v3/gpio"

	"portcullis/hardware"
)

// guardBench is a closed case, watched, in which every debounce ends at once.
func guardBench(t *testing.T, initial gpio.Level) (*bench, *recorder, <-chan hardware.Tamper) {
	t.Helper()
	c := Default()
	// With the pull-down of the other kind of switch gpiotest starts low: closed.
	c.IntrusionNormallyOpen = initial == gpio.Low
	b := open(t, c)
	b.clock.auto = true
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	events, err := b.board.Intrusion(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return b, b.pins["GPIO22"], events
}

func next(t *testing.T, events <-chan hardware.Tamper) hardware.Tamper {
	t.Helper()
	select {
	case e := <-events:
		return e
	case <-time.After(10 * time.Second):
		t.Fatal("no event")
		return hardware.Tamper{}
	}
}

func TestOpeningIsReportedOnceAndClosingArmsAgain(t *testing.T) {
	b, p, events := guardBench(t, gpio.Low)
	p.EdgesChan <- gpio.High
	e := next(t, events)
	if e.Source != SourceChassis || e.Detail != DetailOpened || !e.Time.Equal(b.clock.now) {
		t.Errorf("%+v", e)
	}
	// Opened again while the closing still settles, it was never closed: so try until
	// the closing had its time.
	for end := time.Now().Add(10 * time.Second); ; {
		p.EdgesChan <- gpio.Low
		waitEmpty(t, p)
		select {
		case e := <-events:
			t.Fatalf("closing is an event: %+v", e)
		case <-time.After(20 * time.Millisecond):
		}
		p.EdgesChan <- gpio.High
		select {
		case e := <-events:
			if e.Detail != DetailOpened {
				t.Errorf("%+v", e)
			}
			return
		case <-time.After(500 * time.Millisecond):
		}
		if time.Now().After(end) {
			t.Fatal("closing does not arm again")
		}
	}
}

// waitEmpty waits until every edge was taken.
func waitEmpty(t *testing.T, p *recorder) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); len(p.EdgesChan) > 0; {
		if time.Now().After(end) {
			t.Fatal("edges are not taken")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestCaseThatIsOpenAtTheStart(t *testing.T) {
	_, _, events := guardBench(t, gpio.High)
	if e := next(t, events); e.Detail != DetailFound {
		t.Errorf("%+v", e)
	}
}

func TestBounceThatEndsClosedIsNoEvent(t *testing.T) {
	_, p, events := guardBench(t, gpio.Low)
	for range 10 {
		p.EdgesChan <- gpio.High
		p.EdgesChan <- gpio.Low
	}
	waitEmpty(t, p)
	p.EdgesChan <- gpio.Low
	waitEmpty(t, p)
	select {
	case e := <-events:
		t.Errorf("%+v", e)
	default:
	}
}

func TestSwitchThatNeverRestsIsReported(t *testing.T) {
	_, p, events := guardBench(t, gpio.Low)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for l := gpio.High; ; l = !l {
			select {
			case p.EdgesChan <- l:
			case <-stop:
				return
			}
		}
	}()
	if e := next(t, events); e.Detail != DetailUnstable {
		t.Errorf("%+v", e)
	}
}

func TestLostEdgeIsFoundByLooking(t *testing.T) {
	_, p, events := guardBench(t, gpio.Low)
	p.Pin.Lock()
	p.L = gpio.High // no edge was delivered
	p.Pin.Unlock()
	if e := next(t, events); e.Detail != DetailOpened {
		t.Errorf("%+v", e)
	}
}

func TestEndOfContextClosesTheChannel(t *testing.T) {
	c := Default()
	b := open(t, c)
	b.clock.auto = true
	ctx, cancel := context.WithCancel(t.Context())
	events, err := b.board.Intrusion(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	for range events {
	}
}
