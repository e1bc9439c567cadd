// Package pins drives what is wired to the Pi's header: the relay over the PC's power
// and reset buttons, the chassis-intrusion switch, a status light and a buzzer.
// Lines are opened by name through periph's registry, which is the GPIO character
// device on a Pi 4 and a Pi 5 alike. A small daemon or the root commands call it.
package pins

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits.
const (
	ShortPress  = 500 * time.Millisecond // power: a wish to shut down or to start
	LongPress   = 5 * time.Second        // power: off by force; ATX asks for 4 s
	ResetPress  = 500 * time.Millisecond
	PressPause  = 2 * time.Second // between presses
	MinDebounce = 5 * time.Millisecond
	MaxDebounce = time.Second
	MaxBeep     = 2 * time.Second
)

// Config names the lines; an empty name is a part that is not wired.
type Config struct {
	Power     string `json:"power,omitempty" yaml:"power"`
	Reset     string `json:"reset,omitempty" yaml:"reset"`
	Intrusion string `json:"intrusion,omitempty" yaml:"intrusion"`
	LED       string `json:"led,omitempty" yaml:"led"`
	Buzzer    string `json:"buzzer,omitempty" yaml:"buzzer"`
	// RelayActiveLow is for relay boards that switch at 0 V. They are better
	// avoided: such a relay is on for a moment whenever the kernel takes the line.
	RelayActiveLow bool `json:"relay_active_low,omitempty" yaml:"relay_active_low"`
	// IntrusionNormallyOpen is for a switch that closes when the case is opened. The
	// default is the other kind, to ground with the Pi's pull-up: a cut wire reads
	// as an open case.
	IntrusionNormallyOpen bool `json:"intrusion_normally_open,omitempty" yaml:"intrusion_normally_open"`
	// Debounce is how long the switch must stay as it is, MinDebounce to MaxDebounce.
	Debounce time.Duration `json:"debounce,omitempty" yaml:"debounce"`
	// Zymbit keeps GPIO4 free, on which a Zymkey wakes.
	Zymbit bool `json:"zymbit,omitempty" yaml:"zymbit"`
}

// Default is the wiring of docs/hardware.md.
func Default() Config {
	return Config{Power: "GPIO17", Reset: "GPIO27", Intrusion: "GPIO22", LED: "GPIO23", Buzzer: "GPIO24", Debounce: 50 * time.Millisecond}
}

// taken are the header lines that a Portcullis Pi uses for something else.
var taken = map[int]string{
	2: "I²C of the Zymkey", 3: "I²C of the Zymkey",
	7: "SPI of the TPM", 8: "SPI of the TPM", 9: "SPI of the TPM", 10: "SPI of the TPM", 11: "SPI of the TPM",
	14: "the serial console", 15: "the serial console",
}

// Check refuses what cannot be meant: lines that are not on the header, that belong to
// a chip, or that are named twice.
func (c Config) Check() error {
	var seen []string
	for _, l := range []struct{ part, name string }{
		{"power", c.Power}, {"reset", c.Reset}, {"intrusion", c.Intrusion}, {"led", c.LED}, {"buzzer", c.Buzzer},
	} {
		if l.name == "" {
			continue
		}
		n, err := header(l.name)
		if err != nil {
			return fmt.Errorf("%s: %w", l.part, err)
		}
		if who, ok := taken[n]; ok {
			return fmt.Errorf("%s: %s belongs to %s", l.part, l.name, who)
		}
		if n == 4 && c.Zymbit {
			return fmt.Errorf("%s: %s wakes the Zymkey", l.part, l.name)
		}
		if slices.Contains(seen, l.name) {
			return fmt.Errorf("%s: %s is used twice", l.part, l.name)
		}
		seen = append(seen, l.name)
	}
	if c.Intrusion != "" && (c.Debounce < MinDebounce || c.Debounce > MaxDebounce) {
		return fmt.Errorf("debounce %s is not between %s and %s", c.Debounce, MinDebounce, MaxDebounce)
	}
	return nil
}

// header returns n of "GPIOn", 2 to 27: the name that the device trees of the Pi 4 and
// the Pi 5 both give the lines of the 40-pin header.
func header(name string) (int, error) {
	digits, ok := strings.CutPrefix(name, "GPIO")
	n, err := strconv.Atoi(digits)
	if !ok || err != nil || strconv.Itoa(n) != digits || n < 2 || n > 27 {
		return 0, fmt.Errorf("%q is not GPIO2 to GPIO27", name)
	}
	return n, nil
}
