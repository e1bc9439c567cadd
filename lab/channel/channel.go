// Package channel is the command channel of a lab image: JSON lines over a
// virtio-serial port, a request with a command down, its result up. The guest
// side runs in cmd/hpc-lab, which exists in lab images only; the host side is
// called by package lab.
//
// The port has no framing of its own and no notion of a connection: what one
// host left unread, the next one reads. Requests therefore carry random ids, and
// the host drops every line that does not answer its own.
package channel

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Limits of one request.
const (
	MaxLine  = 64 << 20 // bytes of one JSON line: a program sent as stdin fits
	MaxArgs  = 256
	MaxIDLen = 32
)

// Request asks the guest to run a command as root.
type Request struct {
	ID    string   `json:"id"`
	Argv  []string `json:"argv"`            // program and arguments; no shell
	Stdin []byte   `json:"stdin,omitempty"` // base64 on the wire
	// Limit in milliseconds after which the command is killed; 0 is one minute.
	LimitMS int64 `json:"limit_ms,omitempty"`
}

// Response is the result of a command.
type Response struct {
	ID     string `json:"id"`
	Exit   int    `json:"exit"` // exit code; -1: not run or killed, see Error
	Stdout []byte `json:"stdout,omitempty"`
	Stderr []byte `json:"stderr,omitempty"`
	Error  string `json:"error,omitempty"`
}

// ErrRequest is a line that is no valid request.
var ErrRequest = errors.New("channel: bad request")

// ParseRequest decodes and checks one line. A refused request keeps its id if it
// has a good one, so that the refusal can be answered.
func ParseRequest(line []byte) (Request, error) {
	var r Request
	if len(line) > MaxLine {
		return r, fmt.Errorf("%w: longer than %d bytes", ErrRequest, MaxLine)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return Request{}, fmt.Errorf("%w: %v", ErrRequest, err)
	}
	switch {
	case r.ID == "" || len(r.ID) > MaxIDLen:
		return Request{}, fmt.Errorf("%w: id must have 1 to %d characters", ErrRequest, MaxIDLen)
	case len(r.Argv) == 0 || len(r.Argv) > MaxArgs || r.Argv[0] == "":
		return Request{ID: r.ID}, fmt.Errorf("%w: argv must have 1 to %d words", ErrRequest, MaxArgs)
	case r.LimitMS < 0:
		return Request{ID: r.ID}, fmt.Errorf("%w: negative limit", ErrRequest)
	}
	return r, nil
}

// readLine reads one line of at most MaxLine bytes, without its end.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		if len(line) > MaxLine {
			return nil, fmt.Errorf("%w: longer than %d bytes", ErrRequest, MaxLine)
		}
		if errors.Is(err, bufio.ErrBufferFull) {
			continue
		}
		if err != nil {
			return nil, err
		}
		return line[:len(line)-1], nil
	}
}

func writeLine(w io.Writer, v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	_, err = w.Write(append(b, '\n'))
	return err
}
