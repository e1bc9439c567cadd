package main

import (
	"fmt"
	"regexp"
	"strconv"
)

// times are one boot's, in seconds by the clock of the kernel's log.
type times struct {
	Mounted  float64 `json:"mounted_seconds"`        // from the first program of the initramfs to the mounted root
	Kernel   float64 `json:"kernel_to_root_seconds"` // from the start of the kernel, unpacking included
	HandOver float64 `json:"switch_root_seconds,omitempty"`
}

// runInit is the kernel's last word before the first program of the initramfs.
var runInit = regexp.MustCompile(`\[ *([0-9.]+)\] Run /init as init process`)

// since makes times of the moment at which the root was mounted and the kernel's log.
func since(log string, mounted float64) (times, error) {
	begin, err := seconds(runInit, log)
	if err != nil {
		return times{}, err
	}
	return times{Mounted: mounted - begin, Kernel: mounted}, nil
}

func seconds(re *regexp.Regexp, text string) (float64, error) {
	m := re.FindStringSubmatch(text)
	if m == nil {
		return 0, fmt.Errorf("%s is not in %q", re, text[max(0, len(text)-2000):])
	}
	return strconv.ParseFloat(m[1], 64)
}
