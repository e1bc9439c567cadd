package lab

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Follow reads a growing file line by line until ctx ends, beginning at its
// start; what is there when ctx ends is still read. The children of a lab write
// files and not pipes so that they outlive the lab that started them (--keep).
func Follow(ctx context.Context, path string, line func([]byte)) {
	var f *os.File
	var rest []byte
	buf := make([]byte, 64<<10)
	defer func() {
		if f != nil {
			f.Close()
		}
	}()
	for {
		ended := ctx.Err() != nil
		if f == nil {
			f, _ = os.Open(path)
		}
		for f != nil {
			n, err := f.Read(buf)
			rest = append(rest, buf[:n]...)
			for {
				i := bytes.IndexByte(rest, '\n')
				if i < 0 {
					break
				}
				line(bytes.TrimRight(rest[:i], "\r"))
				rest = rest[i+1:]
			}
			if errors.Is(err, io.EOF) || err != nil {
				break
			}
		}
		if ended {
			return
		}
		select {
		case <-ctx.Done():
		case <-time.After(40 * time.Millisecond):
		}
	}
}

var stageLine = regexp.MustCompile(`portcullis: (stage=|failed )(.*)`)

// ParseConsole turns a line of the PC's serial console into an event, if it is
// one that a person or a test waits for: a stage of hpc-init, a failure of it, the
// firmware's boot choice, a kernel panic.
func ParseConsole(line string, now time.Time) (Event, bool) {
	e := Event{Time: now, Source: "pc", Fields: map[string]any{}}
	if m := stageLine.FindStringSubmatch(line); m != nil {
		e.Name = "pc.stage"
		text := m[2]
		if m[1] == "failed " {
			e.Name = "pc.failed"
		} else {
			text = "stage=" + text
		}
		for k, v := range pairs(text) {
			e.Fields[k] = v
		}
		if t, err := strconv.ParseFloat(e.Text("t"), 64); err == nil {
			e.Fields["t"] = t
		}
		return e, true
	}
	switch {
	case strings.Contains(line, "BdsDxe: starting"):
		e.Name, e.Fields["stage"] = "pc.stage", "firmware-start"
	case strings.Contains(line, "Start HTTP Boot"), strings.Contains(line, "Start PXE"):
		e.Name, e.Fields["stage"] = "pc.stage", "firmware-network"
	case strings.Contains(line, "Kernel panic"):
		e.Name, e.Fields["reason"], e.Fields["detail"] = "pc.failed", "kernel-panic", clean(line)
	case strings.Contains(line, "BdsDxe: failed"), strings.Contains(line, "BdsDxe: No bootable"), strings.Contains(line, "No bootable device"):
		e.Name, e.Fields["reason"], e.Fields["detail"] = "pc.failed", "firmware", clean(line)
	default:
		return Event{}, false
	}
	return e, true
}

// pairs splits key=value words; a value may be quoted as Go or the shell quote.
func pairs(s string) map[string]string {
	out := map[string]string{}
	for s = strings.TrimSpace(s); s != ""; s = strings.TrimLeft(s, " ") {
		key, rest, ok := strings.Cut(s, "=")
		if !ok || strings.ContainsAny(key, " ") {
			break
		}
		value, after := rest, ""
		if q, err := strconv.QuotedPrefix(rest); err == nil {
			value, _ = strconv.Unquote(q)
			after = rest[len(q):]
		} else if key == "detail" {
			// The last key of a failure: a sentence.
		} else {
			value, after, _ = strings.Cut(rest, " ")
		}
		out[key], s = value, after
	}
	return out
}

var control = regexp.MustCompile(`\x1b\[[0-9;=?]*[A-Za-z]|[\x00-\x1f\x7f]`)

// clean removes terminal control sequences from a console line.
func clean(s string) string { return strings.TrimSpace(control.ReplaceAllString(s, "")) }

// readable removes control sequences but keeps the lines.
func readable(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = clean(lines[i])
	}
	return strings.Join(lines, "\n")
}
