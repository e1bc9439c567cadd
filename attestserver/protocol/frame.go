package protocol

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Caps of one frame's payload in bytes. They are checked before memory is taken.
const (
	MaxClaimFrame = 4 << 10 // Hello, Claim, ClaimResult
	MaxFrame      = 4 << 20 // everything after the claim
)

// ErrFrame is a frame that breaks the framing or does not decode.
var ErrFrame = errors.New("bad frame")

// Stream carries Messages over one connection: a big-endian u32 length, then
// the protobuf encoding. Receive may run beside Send; each is called by one
// goroutine at a time (Send also locks).
type Stream struct {
	rw   io.ReadWriter
	head [4]byte

	mu sync.Mutex // held in Send
}

// NewStream starts framing on rw.
func NewStream(rw io.ReadWriter) *Stream { return &Stream{rw: rw} }

// Send writes one message in one Write.
func (s *Stream) Send(m *Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := smallFrames.Get().(*[smallFrame]byte)
	defer smallFrames.Put(p)
	b := append(p[:0], 0, 0, 0, 0)
	b, err := proto.MarshalOptions{}.MarshalAppend(b, m)
	if err != nil {
		return fmt.Errorf("encode message: %w", err)
	}
	if len(b)-4 > MaxFrame {
		return fmt.Errorf("%w: message of %d bytes, at most %d", ErrFrame, len(b)-4, MaxFrame)
	}
	binary.BigEndian.PutUint32(b, uint32(len(b)-4))
	_, err = s.rw.Write(b)
	return err
}

// Receive reads one message whose frame is at most max bytes. A frame that is
// empty, too long or not a Message is ErrFrame; a connection that ends between
// frames is io.EOF, inside one io.ErrUnexpectedEOF.
func (s *Stream) Receive(max int) (*Message, error) {
	if _, err := io.ReadFull(s.rw, s.head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(s.head[:])
	if n == 0 || n > uint32(max) {
		return nil, fmt.Errorf("%w: length %d, want 1 to %d", ErrFrame, n, max)
	}
	b, back := frame(int(n))
	defer back()
	if _, err := io.ReadFull(s.rw, b); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return DecodeMessage(b)
}

// smallFrame is the size of the buffers for most messages in either direction.
const smallFrame = 8 << 10

// The buffers are those of all connections: a rack's answers are some 100 KiB, and 200
// connections that keep the largest they had keep 20 MiB, and 3 of what is smaller.
var (
	smallFrames = sync.Pool{New: func() any { return new([smallFrame]byte) }}
	frames      = sync.Pool{New: func() any { return new([]byte) }} // of what is larger
)

// frame is n bytes, and what is to be called when nothing is read from them any more.
func frame(n int) (b []byte, back func()) {
	if n <= smallFrame {
		p := smallFrames.Get().(*[smallFrame]byte)
		return p[:n], func() { smallFrames.Put(p) }
	}
	p := frames.Get().(*[]byte)
	if cap(*p) < n {
		*p = make([]byte, n)
	}
	return (*p)[:n], func() {
		if cap(*p) <= 2*ChunkSize {
			frames.Put(p)
		}
	}
}

// DecodeMessage decodes the payload of one frame. The message copies what it keeps.
func DecodeMessage(b []byte) (*Message, error) {
	if err := fewFields(b); err != nil {
		return nil, err
	}
	m := new(Message)
	if err := (proto.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return nil, fmt.Errorf("%w: %v", ErrFrame, err)
	}
	if m.Body == nil {
		return nil, fmt.Errorf("%w: no body", ErrFrame)
	}
	return m, nil
}

// maxFields bounds the fields of one body: the ops or results, and the rest.
const maxFields = MaxOps + 32

// fewFields counts before anything is decoded: two bytes of an empty result
// would become some two hundred of memory. A frame is one field, and what is
// repeated inside of it stands at its top.
func fewFields(b []byte) error {
	_, kind, n := protowire.ConsumeTag(b)
	if n < 0 || kind != protowire.BytesType {
		return fmt.Errorf("%w: not one message", ErrFrame)
	}
	body, m := protowire.ConsumeBytes(b[n:])
	if m < 0 || n+m != len(b) {
		return fmt.Errorf("%w: not one message", ErrFrame)
	}
	for fields := 0; len(body) > 0; fields++ {
		_, _, n := protowire.ConsumeField(body)
		if n < 0 || fields == maxFields {
			return fmt.Errorf("%w: more than %d fields, or one that does not decode", ErrFrame, maxFields)
		}
		body = body[n:]
	}
	return nil
}
