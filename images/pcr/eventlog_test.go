package pcr_test

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"portcullis/images/pcr"
)

// events is the firmware's log, digests of the SHA-256 bank only.
type events []event

type event struct {
	pcr    int
	kind   uint32
	digest [sha256.Size]byte
	data   []byte
}

func (l events) of(i int) string {
	var b strings.Builder
	for _, e := range l {
		if e.pcr == i {
			fmt.Fprintf(&b, "  %#x %x %.80q\n", e.kind, e.digest, e.data)
		}
	}
	return b.String()
}

func (l events) replay(i int) pcr.Value {
	var v pcr.Value
	for _, e := range l {
		if e.pcr == i && e.kind != 3 { // EV_NO_ACTION extends nothing
			v = v.Extend(e.digest)
		}
	}
	return v
}

// eventLog reads the TCG2 crypto-agile log (TCG PC Client Platform Firmware
// Profile, chapter 10) that the init printed.
func eventLog(t *testing.T, out string) events {
	t.Helper()
	var text strings.Builder
	for _, line := range strings.Split(out, "\n") {
		if _, part, ok := strings.Cut(line, "PCRTEST log "); ok {
			text.WriteString(strings.TrimSpace(part))
		}
	}
	raw, err := base64.StdEncoding.DecodeString(text.String())
	if err != nil || len(raw) < 32 {
		t.Fatalf("no event log: %v\n%s", err, out)
	}
	r := reader{t: t, b: raw}
	// The first event has the old form and names the digests of the others.
	r.take(4 + 4 + 20)
	r.take(int(r.u32()))
	sizes := map[uint16]int{4: 20, 0xb: 32, 0xc: 48, 0xd: 64, 0x12: 32}
	var log events
	for len(r.b) > 0 {
		e := event{pcr: int(r.u32()), kind: r.u32()}
		for range r.u32() {
			alg := r.u16()
			if digest := r.take(sizes[alg]); alg == 0xb {
				e.digest = [32]byte(digest)
			}
		}
		e.data = r.take(int(r.u32()))
		log = append(log, e)
	}
	return log
}

type reader struct {
	t *testing.T
	b []byte
}

func (r *reader) take(n int) []byte {
	r.t.Helper()
	if n < 0 || n > len(r.b) {
		r.t.Fatalf("the event log is cut off: %d bytes wanted, %d left", n, len(r.b))
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u16() uint16 { b := r.take(2); return uint16(b[0]) | uint16(b[1])<<8 }
func (r *reader) u32() uint32 { lo := uint32(r.u16()); return lo | uint32(r.u16())<<16 }
