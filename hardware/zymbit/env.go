package zymbit

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Caps of the two files, in bytes.
const (
	MaxEnv       = 16 << 10
	MaxDebugGPIO = 256 << 10
)

// EnvFile is where the vendor's tools look for their settings.
const EnvFile = "/var/lib/zymbit/zkenv.conf"

// Env is the vendor's settings file: shell assignments, one per line.
type Env struct {
	// WakePin is ZK_GPIO_WAKE_PIN, the sysfs number of the line; 0 when not set.
	WakePin int
	// Other holds the remaining assignments in their order, as KEY=value without quotes.
	Other []string
}

// ParseEnv reads zkenv.conf. What is neither blank, comment nor assignment is refused:
// the file is sourced by a shell as root.
func ParseEnv(s string) (Env, error) {
	var e Env
	if len(s) > MaxEnv {
		return e, fmt.Errorf("%d bytes are more than %d", len(s), MaxEnv)
	}
	for i, line := range strings.Split(s, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' {
			continue
		}
		key, value, ok := strings.Cut(strings.TrimPrefix(line, "export "), "=")
		value, plain := unquote(value)
		if !ok || !plain || !plainName(key) {
			return Env{}, fmt.Errorf("line %d is no plain assignment", i+1)
		}
		if key != "ZK_GPIO_WAKE_PIN" {
			e.Other = append(e.Other, key+"="+value)
			continue
		}
		n, err := strconv.Atoi(value)
		if err != nil || n < 0 || n > 4095 {
			return Env{}, fmt.Errorf("line %d: ZK_GPIO_WAKE_PIN is not a line number", i+1)
		}
		e.WakePin = n
	}
	return e, nil
}

// String returns the file that ParseEnv reads.
func (e Env) String() string {
	var b strings.Builder
	for _, l := range e.Other {
		fmt.Fprintln(&b, l)
	}
	if e.WakePin > 0 {
		fmt.Fprintf(&b, "ZK_GPIO_WAKE_PIN=%d\n", e.WakePin)
	}
	return b.String()
}

// unquote takes the quotes off a value that a shell would take as it stands.
func unquote(v string) (string, bool) {
	if len(v) >= 2 && (v[0] == '"' || v[0] == '\'') && v[len(v)-1] == v[0] {
		v = v[1 : len(v)-1]
	}
	for _, r := range v {
		if r < ' ' || r > '~' || strings.ContainsRune("`$;&|<>(){}\\\"'# *?[~!", r) {
			return "", false
		}
	}
	return v, true
}

func plainName(s string) bool {
	for i, r := range s {
		if r != '_' && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && (i == 0 || r < '0' || r > '9') {
			return false
		}
	}
	return s != ""
}

// wakeLine is GPIO4 (header pin 7), on which the module wakes and shakes hands.
const wakeLine = 4

// headerChips are the labels of the chips whose lines are on the 40-pin header:
// Pi 3, Pi 4 and Pi 5.
var headerChips = []string{"pinctrl-bcm2835", "pinctrl-bcm2711", "pinctrl-rp1"}

// ErrNoHeader: the kernel shows no chip with the header's lines.
var ErrNoHeader = errors.New("no GPIO chip of the 40-pin header is listed")

// WakePin computes ZK_GPIO_WAKE_PIN from the text of /sys/kernel/debug/gpio: the
// first number of the header's chip plus 4. The base moves with the kernel (0 before
// 6.6, 512 after it on a Pi 4, 569 or 571 on a Pi 5), and with a wrong number the
// module flashes five times a second and never binds.
func WakePin(debugGPIO string) (int, error) {
	if len(debugGPIO) > MaxDebugGPIO {
		return 0, fmt.Errorf("%d bytes are more than %d", len(debugGPIO), MaxDebugGPIO)
	}
	found := -1
	for _, line := range strings.Split(debugGPIO, "\n") {
		if !strings.HasPrefix(line, "gpiochip") || !isHeader(line) {
			continue
		}
		base, err := chipBase(line)
		if err != nil {
			return 0, err
		}
		if found >= 0 {
			return 0, errors.New("two GPIO chips look like the header's")
		}
		found = base
	}
	if found < 0 {
		return 0, ErrNoHeader
	}
	return found + wakeLine, nil
}

func isHeader(line string) bool {
	for _, word := range strings.FieldsFunc(line, func(r rune) bool { return r == ',' || r == ':' || r == ' ' }) {
		for _, c := range headerChips {
			if word == c {
				return true
			}
		}
	}
	return false
}

// chipBase reads "gpiochip0: GPIOs 512-569, parent: …".
func chipBase(line string) (int, error) {
	_, rest, ok := strings.Cut(line, ": GPIOs ")
	if !ok {
		return 0, errors.New("this kernel does not show the numbers of the lines")
	}
	span, _, _ := strings.Cut(rest, ",")
	lo, hi, ok := strings.Cut(strings.TrimSpace(span), "-")
	first, err1 := strconv.Atoi(lo)
	last, err2 := strconv.Atoi(hi)
	if !ok || err1 != nil || err2 != nil || first < 0 || last > 4095 || last-first < wakeLine {
		return 0, fmt.Errorf("%q is no span of lines", span)
	}
	return first, nil
}
