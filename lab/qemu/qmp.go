package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// QMP is one connection of QEMU's machine protocol (docs/interop/qmp-spec in
// QEMU's source): JSON objects, commands answered by id, events in between.
type QMP struct {
	conn    net.Conn
	mu      sync.Mutex
	next    int
	waiting map[int]chan qmpReply
	closed  chan struct{}
	events  chan QMPEvent
	dropped int
}

// QMPEvent is something QEMU tells unasked, for instance RESET or SHUTDOWN.
type QMPEvent struct {
	Name string
	Data json.RawMessage
}

// QMPError is QEMU's refusal of a command.
type QMPError struct {
	Command string
	Class   string `json:"class"`
	Desc    string `json:"desc"`
}

func (e *QMPError) Error() string { return "qmp: " + e.Command + ": " + e.Class + ": " + e.Desc }

type qmpReply struct {
	Return json.RawMessage `json:"return"`
	Error  *QMPError       `json:"error"`
	ID     *int            `json:"id"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

var errQMPClosed = errors.New("qmp: connection closed")

// DialQMP waits for QEMU's socket, until gone is closed or ctx ends, and
// negotiates capabilities.
func DialQMP(ctx context.Context, path string, gone <-chan struct{}) (*QMP, error) {
	var conn net.Conn
	for {
		var err error
		if conn, err = net.Dial("unix", path); err == nil {
			break
		}
		select {
		case <-gone:
			return nil, errors.New("qmp: QEMU ended before its socket appeared")
		case <-ctx.Done():
			return nil, fmt.Errorf("qmp: %w (last: %v)", ctx.Err(), err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	q := &QMP{conn: conn, waiting: map[int]chan qmpReply{}, closed: make(chan struct{}), events: make(chan QMPEvent, 64)}
	go q.read()
	if _, err := q.Execute(ctx, "qmp_capabilities", nil); err != nil {
		conn.Close()
		return nil, err
	}
	return q, nil
}

// Events delivers what QEMU tells; it is closed with the connection. Events that
// nobody takes are dropped after 64.
func (q *QMP) Events() <-chan QMPEvent { return q.events }

// Execute runs one command and returns its result.
func (q *QMP) Execute(ctx context.Context, command string, args map[string]any) (json.RawMessage, error) {
	q.mu.Lock()
	q.next++
	id := q.next
	ch := make(chan qmpReply, 1)
	q.waiting[id] = ch
	msg := map[string]any{"execute": command, "id": id}
	if args != nil {
		msg["arguments"] = args
	}
	b, err := json.Marshal(msg)
	if err == nil {
		_, err = q.conn.Write(append(b, '\n'))
	}
	q.mu.Unlock()
	defer func() {
		q.mu.Lock()
		delete(q.waiting, id)
		q.mu.Unlock()
	}()
	if err != nil {
		return nil, fmt.Errorf("qmp: %s: %w", command, err)
	}
	select {
	case r := <-ch:
		if r.Error != nil {
			r.Error.Command = command
			return nil, r.Error
		}
		return r.Return, nil
	case <-q.closed:
		return nil, fmt.Errorf("%s: %w", command, errQMPClosed)
	case <-ctx.Done():
		return nil, fmt.Errorf("qmp: %s: %w", command, ctx.Err())
	}
}

// Close ends the connection; the machine goes on.
func (q *QMP) Close() { q.conn.Close() }

func (q *QMP) read() {
	defer close(q.events)
	defer close(q.closed)
	in := bufio.NewScanner(q.conn)
	in.Buffer(make([]byte, 64<<10), 4<<20)
	for in.Scan() {
		var r qmpReply
		if json.Unmarshal(in.Bytes(), &r) != nil {
			continue // the greeting has none of these keys; anything else is no JSON of QEMU
		}
		switch {
		case r.Event != "":
			select {
			case q.events <- QMPEvent{Name: r.Event, Data: r.Data}:
			default:
				q.dropped++
			}
		case r.ID != nil:
			q.mu.Lock()
			ch := q.waiting[*r.ID]
			q.mu.Unlock()
			if ch != nil {
				ch <- r
			}
		}
	}
}
