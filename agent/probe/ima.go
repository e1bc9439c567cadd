package probe

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"portcullis/attestserver/protocol"
)

// Ima reads the kernel's own list of what was executed, mapped as code or loaded
// since the machine booted, in order, from where the last answer ended. hpc-init
// has set the policy; without a TPM nothing signs the list.
//
// It finds a program, a library or a script with an interpreter line that ran and
// ended between two challenges, wherever it lay, and a file of the image that was
// changed before it ran.
//
// What the list does not say is where a path counts from. Of each entry the images
// of containers are named that hold this content.
//
// It cannot see code that a program makes in its own memory or reads as data
// (scripts given to an interpreter), nor what a changed kernel leaves out.
type Ima struct {
	Host
	layers *layers
}

// measurements is the list with a SHA-1 of each entry, as the kernel always has
// it; the name without an ending is a link to it.
const measurements = "integrity/ima/binary_runtime_measurements_sha1"

// Name implements protocol.Probe.
func (*Ima) Name() string { return protocol.OpIma }

// Run implements protocol.Probe.
func (p *Ima) Run(ctx context.Context, key protocol.OpKey, params []byte) (protocol.Output, error) {
	var want protocol.ImaParams
	if err := protocol.DecodeOp(params, protocol.MaxParams, &want); err != nil {
		return protocol.Output{}, err
	}
	b, err := p.Special("securityfs", measurements)
	if errors.Is(err, fs.ErrNotExist) { // before Linux 6.10
		b, err = p.Special("securityfs", strings.TrimSuffix(measurements, "_sha1"))
	}
	if err != nil {
		return protocol.Output{}, err
	}
	all, err := parseMeasurements(b)
	if err != nil {
		return protocol.Output{}, err
	}
	if want.From > uint64(len(all)) {
		return protocol.Output{}, fmt.Errorf("asked for the measurements after %d, there are %d", want.From, len(all))
	}
	if err := alive(ctx); err != nil {
		return protocol.Output{}, err
	}
	head := protocol.ImaStart
	for _, m := range all[:want.From] {
		head = protocol.ImaNext(head, m)
	}
	rest := p.fromImages(ctx, all[want.From:])
	d := protocol.ImaData{From: want.From, HeadFrom: hex.EncodeToString(head[:]), Total: uint64(len(all)),
		Entries: rest[:min(len(rest), protocol.MaxMeasurements)]}
	for _, m := range d.Entries {
		head = protocol.ImaNext(head, m)
	}
	d.Head = hex.EncodeToString(head[:])
	if v, err := p.Special("securityfs", "integrity/ima/violations"); err == nil {
		d.Violations, _ = strconv.ParseUint(strings.TrimSpace(string(v)), 10, 64)
	}
	return answer(key, p.Name(), params, d)
}

// readingLimit is how long entries are held back while images of containers are
// read: nobody can hold them back for ever.
const readingLimit = 10 * time.Minute

// fromImages names the images of containers that have what was measured. Nothing is told
// as long as they are read: the next answer has it.
func (p *Ima) fromImages(ctx context.Context, list []protocol.Measurement) []protocol.Measurement {
	if len(list) == 0 {
		return nil
	}
	if reading := p.layers.refresh(ctx); reading > 0 && reading < readingLimit {
		return nil
	}
	out := slices.Clone(list)
	for i, m := range out {
		if d, err := hex.DecodeString(m.Digest); err == nil && len(d) == 32 {
			out[i].Images = p.layers.images([32]byte(d), protocol.MaxMeasuredImages)
		}
	}
	return out
}

// Limits of the kernel's list.
const (
	maxMeasured = 1 << 18
	maxTemplate = 64 << 10
)

// errList is a list that the kernel would not write.
var errList = errors.New("measurement list: cut short or of an unknown form")

// parseMeasurements reads binary_runtime_measurements in the machine's byte
// order, which is little-endian: PCR, SHA-1 of the entry, name of the template, its fields.
func parseMeasurements(b []byte) ([]protocol.Measurement, error) {
	var out []protocol.Measurement
	field := func() ([]byte, bool) {
		if len(b) < 4 {
			return nil, false
		}
		n := binary.LittleEndian.Uint32(b)
		if n > maxTemplate || uint64(n) > uint64(len(b)-4) {
			return nil, false
		}
		f := b[4 : 4+n]
		b = b[4+n:]
		return f, true
	}
	for len(b) > 0 {
		if len(b) < 24 || len(out) == maxMeasured {
			return nil, errList
		}
		b = b[24:] // PCR and SHA-1
		name, ok := field()
		if !ok {
			return nil, errList
		}
		data, ok := field()
		if !ok {
			return nil, errList
		}
		m, err := protocol.ParseMeasurement(string(name), data)
		if err != nil {
			return nil, err
		}
		out = append(out, m)
	}
	return out, nil
}
