package server

import (
	"sync"

	"portcullis/attestserver/channel"
	"portcullis/attestserver/protocol"
)

// maxOut is how many messages wait for the one that is being sent: there is at most one
// challenge open and one Down on its way, so there is always room; if there were none, the
// challenge would be late and count as failed.
const maxOut = 2

// outbox sends messages in their order, each when the one before it has gone; somebody is
// at it only while there is one to send.
type outbox struct {
	at *channel.Conn

	mu   sync.Mutex
	wait []*protocol.Message
	busy bool // somebody is sending; for good when sending has failed
}

// begin does what comes before all messages.
func (o *outbox) begin(first func() error) {
	o.busy = true
	deep.begin(func() { o.run(first()) })
}

// send returns at once; false: there is no room. begin has what sends run.
func (o *outbox) send(m *protocol.Message, begin func(func())) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.wait) == maxOut {
		return false
	}
	o.wait = append(o.wait, m)
	if !o.busy {
		o.busy = true
		begin(func() { o.run(nil) })
	}
	return true
}

func (o *outbox) run(err error) {
	for err == nil {
		m := o.next()
		if m == nil {
			return
		}
		err = o.at.Send(m)
	}
	o.at.Close() // the reader reports it
}

// next takes the oldest message; nil: there is none, and whoever brings one has it sent.
func (o *outbox) next() (m *protocol.Message) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.wait) == 0 {
		o.wait, o.busy = nil, false
		return nil
	}
	m, o.wait = o.wait[0], o.wait[1:]
	return m
}
