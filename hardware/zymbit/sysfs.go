package zymbit

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// SysfsWakePin computes ZK_GPIO_WAKE_PIN from /sys (given as its root): class/gpio names
// every chip with its label and first number. pi-init has no debugfs; the vendor's tools
// need this interface of the kernel anyway.
func SysfsWakePin(sys fs.FS) (int, error) {
	chips, err := fs.Glob(sys, "class/gpio/gpiochip*")
	if err != nil {
		return 0, err
	}
	found := -1
	for _, c := range chips {
		label, err := line(sys, path.Join(c, "label"))
		if err != nil || !slices.Contains(headerChips, label) {
			continue
		}
		text, err := line(sys, path.Join(c, "base"))
		if err != nil {
			return 0, err
		}
		base, err := strconv.Atoi(text)
		if err != nil || base < 0 || base > 4095-wakeLine {
			return 0, fmt.Errorf("%s: base %q is no number of a line", c, text)
		}
		if found >= 0 && found != base {
			return 0, errors.New("two GPIO chips look like the header's")
		}
		found = base
	}
	if found < 0 {
		return 0, ErrNoHeader
	}
	return found + wakeLine, nil
}

// line reads a one-line attribute of at most 128 bytes.
func line(sys fs.FS, name string) (string, error) {
	f, err := sys.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 128))
	return strings.TrimSpace(string(b)), err
}
