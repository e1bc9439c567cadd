// Package eventlog reads the log that a PC's firmware keeps of what it measured
// into its TPM (TCG PC Client Platform Firmware Profile 1.06, chapter 10) and
// replays it against quoted registers. Package expect is its caller; it reads no
// file and needs no chip.
//
// Only the digests of a log are proven by a quote. The type of an event is covered
// by nothing: who forges a log can call a digest what he likes
// (google/go-attestation, event-log-disclosure.md). So nothing here believes a
// type: what an event means follows from its digest alone, and a type that does not
// go with the register is refused.
package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
)

// Limits of a log. Real ones have some hundred events and tens of KiB.
const (
	MaxLog    = 1 << 20 // bytes
	MaxEvents = 4096
	maxBanks  = 8
	maxDigest = 64
	maxPCR    = 23
)

// ErrMalformed is a log that is not of the crypto-agile form, or beyond a limit.
var ErrMalformed = errors.New("malformed event log")

// Digest is of the SHA-256 bank.
type Digest = [sha256.Size]byte

// Event is one entry of the log, after the header.
type Event struct {
	PCR    int
	Type   Type
	Digest Digest
	Data   []byte // means something only where Verbatim says so
}

// Verbatim tells whether the digest is of the data itself, so that a quote proves
// the data, too.
func (e *Event) Verbatim() bool { return sha256.Sum256(e.Data) == e.Digest }

// Log is a log that was read. Nothing in it is proven before Replay agrees with a quote.
type Log struct {
	Events   []Event
	locality byte // of the command that started the chip: register 0 begins with it
}

const algSHA256 = 0x000b

// sizes of the digests that TCG names (Algorithm Registry): a header that says
// otherwise would shift everything behind it.
var sizes = map[uint16]int{0x0004: 20, algSHA256: 32, 0x000c: 48, 0x000d: 64, 0x0012: 32, 0x0027: 32, 0x0028: 48, 0x0029: 64}

type bank struct {
	algorithm uint16
	size      int
}

// Parse reads a whole log, as Linux shows it in binary_bios_measurements.
func Parse(raw []byte) (*Log, error) {
	if len(raw) > MaxLog {
		return nil, fmt.Errorf("%w: %d bytes, at most %d are read", ErrMalformed, len(raw), MaxLog)
	}
	r := &reader{b: raw}
	banks, err := header(r)
	if err != nil {
		return nil, err
	}
	l := new(Log)
	for len(r.b) > 0 {
		if len(l.Events) == MaxEvents {
			return nil, fmt.Errorf("%w: more than %d events", ErrMalformed, MaxEvents)
		}
		e, err := event(r, banks)
		if err != nil {
			return nil, fmt.Errorf("%w: event %d: %w", ErrMalformed, len(l.Events), err)
		}
		if e.Type == NoAction && bytes.HasPrefix(e.Data, startup) {
			if err := l.started(&e); err != nil {
				return nil, fmt.Errorf("%w: event %d: %w", ErrMalformed, len(l.Events), err)
			}
		}
		l.Events = append(l.Events, e)
	}
	return l, nil
}

var (
	signature = []byte("Spec ID Event03\x00")
	startup   = []byte("StartupLocality\x00")
)

// header is the first event, in the old form (10.2.1, TCG_EfiSpecIDEvent).
func header(r *reader) ([]bank, error) {
	pcr, kind := r.u32(), Type(r.u32())
	digest := r.take(20)
	spec := &reader{b: r.take(int(r.u32()))}
	if r.short || pcr != 0 || kind != NoAction || !zeros(digest) || !bytes.Equal(spec.take(len(signature)), signature) {
		return nil, fmt.Errorf("%w: it does not begin with the header of a crypto-agile log", ErrMalformed)
	}
	spec.take(8) // platform class, version, errata, size of a UINTN
	n := spec.u32()
	if spec.short || n < 1 || n > maxBanks {
		return nil, fmt.Errorf("%w: a header of %d banks", ErrMalformed, n)
	}
	var banks []bank
	has := map[uint16]bool{}
	for range n {
		b := bank{spec.u16(), int(spec.u16())}
		known, ok := sizes[b.algorithm]
		if spec.short || has[b.algorithm] || b.size < 1 || b.size > maxDigest || (ok && known != b.size) {
			return nil, fmt.Errorf("%w: bank %#x with digests of %d bytes", ErrMalformed, b.algorithm, b.size)
		}
		has[b.algorithm] = true
		banks = append(banks, b)
	}
	spec.take(int(spec.u8())) // the vendor's
	if spec.short || len(spec.b) != 0 {
		return nil, fmt.Errorf("%w: the header's size is wrong", ErrMalformed)
	}
	if !has[algSHA256] {
		return nil, fmt.Errorf("%w: no SHA-256 bank", ErrMalformed)
	}
	return banks, nil
}

// event is one TCG_PCR_EVENT2: it must have a digest of every bank, each once.
func event(r *reader, banks []bank) (e Event, err error) {
	pcr, kind, n := r.u32(), r.u32(), r.u32()
	if r.short || pcr > maxPCR || int64(n) != int64(len(banks)) {
		return e, fmt.Errorf("register %d with %d digests, the log has %d banks", pcr, n, len(banks))
	}
	e.PCR, e.Type = int(pcr), Type(kind)
	has := map[uint16]bool{}
	for range n {
		algorithm := r.u16()
		size := 0
		for _, b := range banks {
			if b.algorithm == algorithm {
				size = b.size
			}
		}
		digest := r.take(size)
		if r.short || size == 0 || has[algorithm] {
			return e, fmt.Errorf("a digest of bank %#x that the header has not, or twice", algorithm)
		}
		has[algorithm] = true
		if algorithm == algSHA256 {
			copy(e.Digest[:], digest)
		}
	}
	data := r.take(int(r.u32()))
	if r.short {
		return e, errors.New("cut off")
	}
	e.Data = bytes.Clone(data)
	if e.Type == NoAction && e.Digest != (Digest{}) {
		return e, errors.New("an event that extends nothing has a digest")
	}
	return e, nil
}

// started takes the locality that register 0 begins with (10.4.5.3).
func (l *Log) started(e *Event) error {
	if len(e.Data) != len(startup)+1 || l.locality != 0 {
		return errors.New("a second or malformed startup locality")
	}
	for _, before := range l.Events {
		if before.PCR == 0 && before.Type != NoAction {
			return errors.New("a startup locality after the first measurement")
		}
	}
	l.locality = e.Data[len(startup)]
	switch l.locality {
	case 0, 3, 4:
		return nil
	}
	return fmt.Errorf("startup locality %d", l.locality)
}

// reader takes bytes from the front. After short everything it gives is empty.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) take(n int) []byte {
	if r.short || n < 0 || n > len(r.b) {
		r.short = true
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) u8() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u16() uint16 {
	if b := r.take(2); b != nil {
		return binary.LittleEndian.Uint16(b)
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.take(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func zeros(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
