package pins

import (
	"context"
	"time"

	"periph.io/x/conn/v3/gpio"

	"portcullis/hardware"
)

// Step is one part of a light pattern.
type Step struct {
	On  bool
	For time.Duration // 0: for good
}

// Pattern is what the light does for an indication, again and again. No two can be taken
// for each other within two seconds.
func Pattern(s hardware.Indication) []Step {
	const ms = time.Millisecond
	switch s {
	case hardware.IndicateStarting:
		return []Step{{true, 500 * ms}, {false, 500 * ms}}
	case hardware.IndicateReady:
		return []Step{{true, 0}}
	case hardware.IndicateWarning:
		return []Step{{true, 150 * ms}, {false, 150 * ms}, {true, 150 * ms}, {false, 1050 * ms}}
	case hardware.IndicateAlarm:
		return []Step{{true, 100 * ms}, {false, 100 * ms}}
	}
	return []Step{{false, 0}}
}

// Indicate shows s on the light until the next call. Without a light it does nothing.
func (b *Board) Indicate(s hardware.Indication) {
	for {
		select {
		case b.light <- s:
			return
		default:
			// Nobody took the last one yet: the newest counts.
			select {
			case <-b.light:
			default:
			}
		}
	}
}

// shine owns the light.
func (b *Board) shine(ctx context.Context) {
	steps, i := Pattern(hardware.IndicateOff), 0
	for {
		if b.led != nil {
			_ = b.led.Out(gpio.Level(steps[i].On)) // a light that fails is no reason to stop
		}
		var next <-chan time.Time
		if d := steps[i].For; d > 0 {
			next = b.clock.After(d)
		}
		select {
		case <-ctx.Done():
			return
		case s := <-b.light:
			steps, i = Pattern(s), 0
		case <-next:
			i = (i + 1) % len(steps)
		}
	}
}
