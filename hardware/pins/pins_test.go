package pins

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/gpio/gpiotest"

	"portcullis/hardware"
)

// fakeClock fires a wait when the test moves time past it, or at once while auto is on.
type fakeClock struct {
	mu    sync.Mutex
	now   time.Time
	waits []wait
	fresh chan time.Duration // every new wait
	auto  bool
}

type wait struct {
	at time.Time
	ch chan time.Time
}

func newClock() *fakeClock {
	return &fakeClock{now: time.Unix(1_800_000_000, 0), fresh: make(chan time.Duration, 1024)}
}

func (c *fakeClock) Now() time.Time { c.mu.Lock(); defer c.mu.Unlock(); return c.now }

func (c *fakeClock) After(d time.Duration) <-chan time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := wait{c.now.Add(d), make(chan time.Time, 1)}
	if c.auto {
		w.ch <- c.now
		return w.ch
	}
	c.waits = append(c.waits, w)
	c.fresh <- d
	return w.ch
}

func (c *fakeClock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
	var left []wait
	for _, w := range c.waits {
		if w.at.After(c.now) {
			left = append(left, w)
			continue
		}
		w.ch <- c.now
	}
	c.waits = left
}

// recorder is a pin that writes down what it is told; stuck does not follow.
type recorder struct {
	gpiotest.Pin
	mu    sync.Mutex
	out   []gpio.Level
	stuck bool
}

func (r *recorder) Out(l gpio.Level) error {
	r.mu.Lock()
	r.out = append(r.out, l)
	stuck := r.stuck
	r.mu.Unlock()
	if stuck {
		return nil
	}
	return r.Pin.Out(l)
}

func (r *recorder) levels() []gpio.Level {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]gpio.Level(nil), r.out...)
}

func (r *recorder) at() gpio.Level { return r.Pin.Read() }

type bench struct {
	pins  map[string]*recorder
	clock *fakeClock
	board *Board
}

func open(t *testing.T, c Config) *bench {
	t.Helper()
	b := &bench{pins: map[string]*recorder{}, clock: newClock()}
	for _, n := range []string{"GPIO17", "GPIO27", "GPIO22", "GPIO23", "GPIO24"} {
		b.pins[n] = &recorder{Pin: gpiotest.Pin{N: n, EdgesChan: make(chan gpio.Level, 256)}}
	}
	b.pins["GPIO17"].L = gpio.High // as a killed process left it
	var err error
	b.board, err = Open(c, func(n string) gpio.PinIO {
		if p, ok := b.pins[n]; ok {
			return p
		}
		return nil
	}, b.clock)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.board.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func TestConfigRefusals(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"TPM's line":        func(c *Config) { c.Power = "GPIO7" },
		"I2C":               func(c *Config) { c.LED = "GPIO2" },
		"console":           func(c *Config) { c.Buzzer = "GPIO14" },
		"Zymkey's wake":     func(c *Config) { c.Zymbit, c.Power = true, "GPIO4" },
		"twice":             func(c *Config) { c.Reset = c.Power },
		"not on the header": func(c *Config) { c.Power = "GPIO28" },
		"ID pins":           func(c *Config) { c.Power = "GPIO1" },
		"by number":         func(c *Config) { c.Power = "17" },
		"leading zero":      func(c *Config) { c.Power = "GPIO017" },
		"other chip":        func(c *Config) { c.Power = "2712_WAKE" },
		"no debounce":       func(c *Config) { c.Debounce = 0 },
		"endless debounce":  func(c *Config) { c.Debounce = time.Minute },
	} {
		c := Default()
		change(&c)
		if c.Check() == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if err := Default().Check(); err != nil {
		t.Error(err)
	}
	c := Default()
	c.Power = "GPIO4"
	if err := c.Check(); err != nil {
		t.Errorf("GPIO4 without a Zymkey: %v", err)
	}
}

func TestOpenFreesAButtonThatWasLeftDown(t *testing.T) {
	b := open(t, Default())
	if b.pins["GPIO17"].at() != gpio.Low {
		t.Error("the power button is still down")
	}
	c := Default()
	c.LED = "GPIO5"
	if _, err := Open(c, func(string) gpio.PinIO { return nil }, newClock()); hardware.ReasonOf(err) != ReasonNoLine {
		t.Error(err)
	}
}

func TestPressHoldsAsLongAsAskedAndReleases(t *testing.T) {
	for name, c := range map[string]struct {
		press func(*Board) error
		pin   string
		hold  time.Duration
		low   bool
	}{
		"short power":        {func(b *Board) error { return b.PressPower(context.Background(), false) }, "GPIO17", ShortPress, false},
		"long power":         {func(b *Board) error { return b.PressPower(context.Background(), true) }, "GPIO17", LongPress, false},
		"reset":              {func(b *Board) error { return b.PressReset(context.Background()) }, "GPIO27", ResetPress, false},
		"relay on at 0 volt": {func(b *Board) error { return b.PressReset(context.Background()) }, "GPIO27", ResetPress, true},
	} {
		t.Run(name, func(t *testing.T) {
			conf := Default()
			conf.RelayActiveLow = c.low
			b := open(t, conf)
			done := make(chan error, 1)
			go func() { done <- c.press(b.board) }()
			if d := <-b.clock.fresh; d != c.hold {
				t.Fatalf("held for %s instead of %s", d, c.hold)
			}
			on := gpio.Level(!c.low)
			if b.pins[c.pin].at() != on {
				t.Error("the button is not down")
			}
			b.clock.advance(c.hold - time.Millisecond)
			select {
			case err := <-done:
				t.Fatalf("too early: %v", err)
			default:
			}
			b.clock.advance(time.Millisecond)
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			if b.pins[c.pin].at() == on {
				t.Error("the button is still down")
			}
		})
	}
}

func TestNeverTwoButtonsAtOnceNorInQuickSuccession(t *testing.T) {
	b := open(t, Default())
	done := make(chan error, 1)
	go func() { done <- b.board.PressPower(context.Background(), false) }()
	<-b.clock.fresh
	if err := b.board.PressReset(context.Background()); hardware.ReasonOf(err) != ReasonBusy {
		t.Errorf("both at once: %v", err)
	}
	b.clock.advance(ShortPress)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if d := <-b.clock.fresh; d != PressPause {
		t.Errorf("a pause of %s", d)
	}
	if err := b.board.PressPower(context.Background(), false); hardware.ReasonOf(err) != ReasonBusy {
		t.Errorf("in quick succession: %v", err)
	}
	if n := len(b.pins["GPIO27"].levels()); n != 1 {
		t.Errorf("reset was moved %d times", n)
	}
	b.clock.advance(PressPause)
	b.clock.mu.Lock()
	b.clock.auto = true
	b.clock.mu.Unlock()
	for { // the pause ends in a goroutine of its own
		err := b.board.PressReset(context.Background())
		if err == nil {
			break
		}
		if hardware.ReasonOf(err) != ReasonBusy {
			t.Fatal(err)
		}
	}
}

func TestEndOfContextReleasesTheButton(t *testing.T) {
	b := open(t, Default())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.board.PressPower(ctx, true) }()
	<-b.clock.fresh
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if b.pins["GPIO17"].at() != gpio.Low {
		t.Error("the button is still down")
	}
}

func TestStuckLineIsToldAndLetGo(t *testing.T) {
	b := open(t, Default())
	p := b.pins["GPIO17"]
	p.mu.Lock()
	p.stuck = true
	p.mu.Unlock()
	if err := b.board.PressPower(t.Context(), false); hardware.ReasonOf(err) != ReasonStuck {
		t.Error(err)
	}
	l := p.levels()
	if l[len(l)-1] != gpio.Low {
		t.Errorf("%v: not let go", l)
	}
	p.mu.Lock()
	p.stuck = false
	p.mu.Unlock()
}

func TestUnwiredPartsSaySo(t *testing.T) {
	b := open(t, Config{Debounce: time.Second})
	for name, err := range map[string]error{
		"power": b.board.PressPower(t.Context(), false), "reset": b.board.PressReset(t.Context()), "buzzer": b.board.Beep(t.Context(), time.Second),
	} {
		if hardware.ReasonOf(err) != ReasonNotWired {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := b.board.Intrusion(t.Context()); hardware.ReasonOf(err) != ReasonNotWired {
		t.Error(err)
	}
	b.board.Indicate(hardware.IndicateAlarm)
}

func TestBeepIsCapped(t *testing.T) {
	b := open(t, Default())
	done := make(chan error, 1)
	go func() { done <- b.board.Beep(t.Context(), time.Hour) }()
	if d := <-b.clock.fresh; d != MaxBeep {
		t.Errorf("%s", d)
	}
	b.clock.advance(MaxBeep)
	if err := <-done; err != nil || b.pins["GPIO24"].at() != gpio.Low {
		t.Error(err)
	}
}

func TestPatternsDiffer(t *testing.T) {
	seen := map[string]hardware.Indication{}
	for _, i := range []hardware.Indication{hardware.IndicateOff, hardware.IndicateStarting, hardware.IndicateReady, hardware.IndicateWarning, hardware.IndicateAlarm} {
		s := ""
		for ms := time.Duration(0); ms < 2*time.Second; ms += 50 * time.Millisecond {
			if onAt(Pattern(i), ms) {
				s += "#"
			} else {
				s += "."
			}
		}
		if other, ok := seen[s]; ok {
			t.Errorf("%s looks like %s", i, other)
		}
		seen[s] = i
	}
}

func onAt(steps []Step, at time.Duration) bool {
	for i := 0; ; i = (i + 1) % len(steps) {
		if steps[i].For == 0 || at < steps[i].For {
			return steps[i].On
		}
		at -= steps[i].For
	}
}

func TestLightFollows(t *testing.T) {
	b := open(t, Default())
	led := b.pins["GPIO23"]
	b.board.Indicate(hardware.IndicateAlarm)
	for range 6 {
		d := <-b.clock.fresh
		if d != 100*time.Millisecond {
			t.Fatalf("%s", d)
		}
		b.clock.advance(d)
	}
	on := 0
	for _, l := range led.levels() {
		if l {
			on++
		}
	}
	if on < 3 {
		t.Errorf("%v", led.levels())
	}
}
