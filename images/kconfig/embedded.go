package kconfig

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
)

// The marks around the packed configuration in a kernel's read-only data
// (kernel/configs.c).
var begin, end = []byte("IKCFG_ST"), []byte("IKCFG_ED")

// Embedded finds the configuration that a kernel with IKCONFIG carries in its
// read-only data. found is false where there is none.
func Embedded(rodata []byte) (lines []Line, found bool, err error) {
	at := bytes.Index(rodata, append(bytes.Clone(begin), 0x1f, 0x8b))
	if at < 0 {
		return nil, false, nil
	}
	packed := rodata[at+len(begin):]
	if n := bytes.Index(packed, end); n >= 0 {
		packed = packed[:n]
	} else {
		return nil, false, errors.New("embedded configuration has no end")
	}
	z, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return nil, false, fmt.Errorf("embedded configuration: %w", err)
	}
	text, err := io.ReadAll(io.LimitReader(z, Max+1))
	if err != nil {
		return nil, false, fmt.Errorf("embedded configuration: %w", err)
	}
	lines, err = Parse(text)
	return lines, err == nil, err
}
