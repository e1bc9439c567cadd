package probe

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"portcullis/attestserver/protocol"
)

// Time reads the machine's clocks and measures a piece of work that could not be
// done beforehand.
//
// It finds a wall clock that was set (what hides a change of a file from its
// times), a clock that does not go as fast as the gateway's, work that suddenly
// takes many times as long, and a hypervisor that takes processor time away.
//
// It cannot see a fast machine that answers for a slow one: what it says is a
// hint, and no finding of it alone quarantines.
type Time struct{ Host }

// Name implements protocol.Probe.
func (*Time) Name() string { return protocol.OpTime }

// Run implements protocol.Probe.
func (p *Time) Run(_ context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var want protocol.TimeParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &want); err != nil {
		return protocol.Output{}, err
	}
	var d protocol.TimeData
	var err error
	if d.RawNs, d.BootMs, d.WallMs, err = p.Clocks(); err != nil {
		return protocol.Output{}, err
	}
	d.Source = optional(p.Sys, "devices/system/clocksource/clocksource0/current_clocksource")
	b, err := read(p.Proc, "stat")
	if err != nil {
		return protocol.Output{}, err
	}
	if d.TotalJiff, d.StealJiff, err = parseCPUTime(string(b)); err != nil {
		return protocol.Output{}, err
	}
	if b, err := read(p.Proc, "cpuinfo"); err == nil {
		if cpus := parseCPUInfo(string(b)); len(cpus) > 0 {
			if f, err := strconv.ParseFloat(cpus[0]["cpu MHz"], 64); err == nil && f > 0 && f < 1e6 {
				d.MHz = int64(f)
			}
		}
	}
	began := time.Now()
	work := key.TimeWork(want.Rounds)
	d.WorkNs = time.Since(began).Nanoseconds()
	out, err := protocol.EncodeOp(d)
	if err != nil {
		return protocol.Output{}, err
	}
	return protocol.Output{Digest: key.Digest(p.Name(), params, append(work[:], out...)), Data: out}, nil
}

// parseCPUTime reads the first line of /proc/stat (proc_stat(5)): user, nice,
// system, idle, iowait, irq, softirq, steal; guest times are in the first two.
func parseCPUTime(s string) (total, steal uint64, err error) {
	line, _, _ := strings.Cut(s, "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return 0, 0, fmt.Errorf("stat: %.80q", line)
	}
	for i, v := range f[1:9] {
		n, err := strconv.ParseUint(v, 10, 62)
		if err != nil {
			return 0, 0, fmt.Errorf("stat: %w", err)
		}
		if total += n; i == 7 {
			steal = n
		}
	}
	return total, steal, nil
}
