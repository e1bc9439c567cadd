package protocol

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
)

// Names of the ops.
const (
	OpBoot    = "boot"
	OpBlock   = "block"
	OpProcs   = "procs"
	OpPmem    = "pmem"
	OpModules = "modules"
	OpNet     = "net"
	OpHw      = "hw"
	OpKtext   = "ktext"
	OpKrodata = "krodata"
	OpTrace   = "trace"
	OpFiles   = "files"
	OpTime    = "time"
	OpNoise   = "noise"
	OpIma     = "ima"

	OpContainer = "container"
	OpUevent    = "uevent"
)

// Limits of lists in an op's data. Beyond them the agent fails the op and the
// gateway refuses the answer.
const (
	MaxProcesses  = 8192
	MaxFiles      = 4096 // distinct executable files that are mapped
	MaxMounts     = 4096
	MaxModules    = 1024
	MaxLinks      = 1024
	MaxComponents = 4096
	MaxPages      = 4096
	MaxString     = 4096 // bytes of one string
)

// None is the parameters of an op that has none.
var None = []byte("{}")

// EncodeOp writes parameters or data of an op.
func EncodeOp(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("op: %w", err)
	}
	return b, nil
}

// Bounds of what decoding may take in memory, counted in the bytes before it is
// decoded: three bytes of JSON can become hundreds. All the lists of one answer
// at their limits stay below them.
const (
	maxObjects = 32 << 10
	maxValues  = 256 << 10
)

// DecodeOp reads parameters or data of an op into v: one JSON value, no unknown
// key, at most max bytes. Lists are bounded by their types' Check.
func DecodeOp(data []byte, max int, v interface{ Check() error }) error {
	if len(data) > max {
		return fmt.Errorf("op data of %d bytes, at most %d are read", len(data), max)
	}
	if !bytes.HasPrefix(data, []byte("{")) {
		return errors.New("op data that is no object")
	}
	if n := bytes.Count(data, []byte("{")); n > maxObjects {
		return fmt.Errorf("op data of %d objects, at most %d are read", n, maxObjects)
	}
	if n := bytes.Count(data, []byte(",")); n > maxValues {
		return fmt.Errorf("op data of %d values, at most %d are read", n, maxValues)
	}
	if p, ok := v.(plain); !ok || !p.readPlain(data) {
		if err := decodeOne(data, v); err != nil {
			return err
		}
	}
	if err := v.Check(); err != nil {
		return fmt.Errorf("op data: %w", err)
	}
	return nil
}

func decodeOne(data []byte, v any) error {
	d := decoders.Get().(*decoder)
	d.from.Reset(data)
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("op data: %w", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("op data: surplus bytes")
	}
	if d.from.Reset(nil); len(data) <= maxDecoder {
		decoders.Put(d)
	}
	return nil
}

// decoder is one for values that follow one another: its buffer, which grows to some
// times the size of what is read, was an eighth of all memory that attestd took. One
// that has met an error is not used again.
type decoder struct {
	*json.Decoder
	from *bytes.Reader
}

// maxDecoder bounds in bytes what a decoder has read that is kept.
const maxDecoder = 128 << 10

var decoders = sync.Pool{New: func() any {
	from := new(bytes.Reader)
	d := &decoder{json.NewDecoder(from), from}
	d.DisallowUnknownFields()
	return d
}}

// CheckNone refuses parameters for an op that has none.
func CheckNone(params []byte) error {
	if !bytes.Equal(params, None) {
		return errors.New("op data: this op has no parameters")
	}
	return nil
}

func atMost(what string, n, max int) error {
	if n > max {
		return fmt.Errorf("%d %s, at most %d", n, what, max)
	}
	return nil
}

// Clean makes a name that a machine gave fit for JSON and for a log: JSON gives back
// exactly what was put in.
func Clean(s string) string {
	s = strings.ToValidUTF8(s, "?")
	return strings.ToValidUTF8(s[:min(len(s), MaxString-16)], "")
}

func short(what string, all ...string) error {
	for _, s := range all {
		if len(s) > MaxString {
			return fmt.Errorf("%s: string of %d bytes", what, len(s))
		}
	}
	return nil
}
