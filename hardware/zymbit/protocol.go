package zymbit

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"

	"portcullis/hardware"
)

// The protocol of zymbitd: frames of a length (4 bytes, big endian, 1 to MaxFrame) and a
// JSON object. The client sends requests, the daemon answers each in turn; after a
// request OpTampers it sends replies with events until the client hangs up.

// MaxFrame caps a frame, in bytes.
const MaxFrame = 16 << 10

// Operations.
const (
	OpIdentify = "identify"
	OpRandom   = "random"
	OpSeal     = "seal"
	OpUnseal   = "unseal"
	OpSign     = "sign"
	OpIndicate = "indicate"
	OpTampers  = "tampers"
)

// Request is one question.
type Request struct {
	Op    string              `json:"op"`
	N     int                 `json:"n,omitempty"`     // OpRandom: bytes, 1 to 512
	Label string              `json:"label,omitempty"` // OpSeal, OpUnseal: 1 to 128 bytes
	Data  []byte              `json:"data,omitempty"`  // OpSeal: the secret; OpSign: the digest
	Blob  json.RawMessage     `json:"blob,omitempty"`  // OpUnseal
	State hardware.Indication `json:"state,omitempty"` // OpIndicate
}

func (r *Request) check() error {
	bad := func(what string) error { return fmt.Errorf("%s: %s", r.Op, what) }
	label := func() error {
		if len(r.Label) < 1 || len(r.Label) > 128 {
			return bad("a label has 1 to 128 bytes")
		}
		return nil
	}
	switch r.Op {
	case OpIdentify, OpTampers, OpIndicate:
		return nil
	case OpRandom:
		if r.N < 1 || r.N > 512 {
			return bad("n is 1 to 512")
		}
		return nil
	case OpSeal:
		if len(r.Data) < 1 || len(r.Data) > 64 {
			return bad("a secret has 1 to 64 bytes")
		}
		return label()
	case OpUnseal:
		if len(r.Blob) == 0 || len(r.Blob) > hardware.MaxToken {
			return bad("no blob")
		}
		return label()
	case OpSign:
		if len(r.Data) != 32 {
			return bad("a digest has 32 bytes")
		}
		return nil
	}
	return fmt.Errorf("operation %q is not known", printable(r.Op))
}

// Reply is one answer. Reason is empty where the operation succeeded.
type Reply struct {
	Reason   hardware.Reason    `json:"reason,omitempty"`
	Text     string             `json:"text,omitempty"`
	Data     []byte             `json:"data,omitempty"`
	Blob     json.RawMessage    `json:"blob,omitempty"`
	Identity *hardware.Identity `json:"identity,omitempty"`
	Tamper   *hardware.Tamper   `json:"tamper,omitempty"`
}

// ReadRequest reads and checks one request. io.EOF is the clean end.
func ReadRequest(r io.Reader) (*Request, error) {
	b, err := readFrame(r)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	var q Request
	if err := hardware.DecodeStrict(b, &q); err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	if err := q.check(); err != nil {
		return nil, fmt.Errorf("request: %w", err)
	}
	return &q, nil
}

// ReadReply reads one reply.
func ReadReply(r io.Reader) (*Reply, error) {
	b, err := readFrame(r)
	if err != nil {
		return nil, err
	}
	defer clear(b)
	var a Reply
	if err := hardware.DecodeStrict(b, &a); err != nil {
		return nil, fmt.Errorf("reply: %w", err)
	}
	if len(a.Data) > 512 || len(a.Text) > 1024 || len(a.Blob) > hardware.MaxToken {
		return nil, fmt.Errorf("reply: a field is too long")
	}
	return &a, nil
}

func readFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n < 1 || n > MaxFrame {
		return nil, fmt.Errorf("a frame of %d bytes is not 1 to %d", n, MaxFrame)
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// writeFrame sends v and wipes the bytes it made of it.
func writeFrame(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	defer clear(b)
	if len(b) > MaxFrame {
		return fmt.Errorf("a frame of %d bytes is more than %d", len(b), MaxFrame)
	}
	f := make([]byte, 4+len(b))
	defer clear(f)
	binary.BigEndian.PutUint32(f, uint32(len(b)))
	copy(f[4:], b)
	_, err = w.Write(f)
	return err
}
