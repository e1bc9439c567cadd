// Package continuity keeps the epochs of the boot session that the PC is in: what
// ties a new connection of the agent to the one before it. It outlives attestd,
// so that a restart needs no reboot of the PC. attestserver/server calls it from
// one goroutine.
package continuity

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"portcullis/attestserver/protocol"
	"portcullis/internal/atomicfile"
)

// Claimant is a connection whose claim is genuine: attestserver/channel.Conn.
type Claimant interface {
	// Shows tells whether the claim proves that its sender has the epoch.
	Shows(*protocol.Epoch) bool
	// Next is the epoch that the connection makes of the one before it.
	Next(before *protocol.Epoch) (*protocol.Epoch, error)
}

// ErrBroken is a claim that does not continue the session.
var ErrBroken = errors.New("does not continue the epochs of this boot session")

// Keeper holds the epochs of one PC. An epoch becomes the current one when
// evidence has come that was made with it: before that the agent may not have
// heard that its claim was granted, and comes again with the one before.
type Keeper struct {
	path    string
	session string
	current *protocol.Epoch // confirmed; nil in the first connection of a session
	next    *protocol.Epoch // granted, not confirmed
}

// file is how it is kept. It lies on the encrypted volume of the Pi, mode 0600.
type file struct {
	Session string `json:"session"`
	Current *kept  `json:"current,omitempty"`
	Next    *kept  `json:"next,omitempty"`
}

type kept struct {
	Number uint64 `json:"number"`
	Key    []byte `json:"key"` // 32 bytes
}

const maxFile = 4 << 10

// Open reads what is kept at path; there may be nothing yet.
func Open(path string) (*Keeper, error) {
	k := &Keeper{path: path}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return k, nil
	}
	if err != nil {
		return nil, fmt.Errorf("epochs: %w", err)
	}
	defer f.Close()
	b := make([]byte, maxFile)
	n, err := f.Read(b)
	defer clear(b)
	if err == nil {
		err = k.parse(b[:n])
	}
	if err != nil {
		return nil, fmt.Errorf("epochs %s: %w", path, err)
	}
	return k, nil
}

func (k *Keeper) parse(b []byte) error {
	var f file
	if err := json.Unmarshal(b, &f); err != nil {
		return err
	}
	if !protocol.ValidSession(f.Session) {
		return errors.New("bad session id")
	}
	k.session = f.Session
	for at, from := range map[**protocol.Epoch]*kept{&k.current: f.Current, &k.next: f.Next} {
		if from == nil {
			continue
		}
		if len(from.Key) != 32 || from.Number == 0 {
			return errors.New("bad epoch")
		}
		*at = protocol.OldEpoch(from.Number, [32]byte(from.Key))
		clear(from.Key)
	}
	return nil
}

// Accept takes the claim of a connection and returns its epoch, which is on the
// disk then. number is what the claim names, 0 for none. Where the session is
// another than before, or nothing of it was ever confirmed, the epochs begin.
func (k *Keeper) Accept(session string, number uint64, c Claimant) (*protocol.Epoch, error) {
	var before *protocol.Epoch
	switch {
	case session != k.session || k.current == nil && number == 0:
		if number != 0 {
			return nil, fmt.Errorf("%w: epoch %d, none is known", ErrBroken, number)
		}
	case k.next != nil && k.next.Number == number && c.Shows(k.next):
		before = k.next // the agent has heard of it
	case k.current != nil && k.current.Number == number && c.Shows(k.current):
		before = k.current
	default:
		return nil, fmt.Errorf("%w: epoch %d is not shown", ErrBroken, number)
	}
	next, err := c.Next(before)
	if err != nil {
		return nil, err
	}
	if session != k.session {
		k.Forget()
	}
	if before != nil && before == k.next {
		k.current.Wipe()
		k.current = before
	} else if k.next != nil {
		k.next.Wipe()
	}
	k.session, k.next = session, next
	return next, k.store()
}

// Confirm makes e the current epoch, if it is the one that was granted last, and
// forgets the one before it.
func (k *Keeper) Confirm(e *protocol.Epoch) error {
	if k.next == nil || !k.next.Same(e) {
		return nil
	}
	k.current.Wipe()
	k.current, k.next = k.next, nil
	return k.store()
}

// Number is that of the confirmed epoch, 0 where there is none.
func (k *Keeper) Number() uint64 {
	if k.current == nil {
		return 0
	}
	return k.current.Number
}

// Forget wipes the epochs: the session is over, or its continuity is lost.
func (k *Keeper) Forget() {
	k.current.Wipe()
	k.next.Wipe()
	k.session, k.current, k.next = "", nil, nil
}

// store replaces the file at once; its content is on the disk when it returns.
func (k *Keeper) store() error {
	f := file{Session: k.session}
	for at, from := range map[**kept]*protocol.Epoch{&f.Current: k.current, &f.Next: k.next} {
		if from != nil {
			key := from.Key()
			*at = &kept{from.Number, key[:]}
		}
	}
	b, err := json.Marshal(f)
	if err != nil {
		return fmt.Errorf("epochs: %w", err)
	}
	defer clear(b)
	if err := atomicfile.Replace(k.path, b, true); err != nil {
		return fmt.Errorf("epochs: %w", err)
	}
	return nil
}

// Knows tells whether something is kept of the session.
func (k *Keeper) Knows(session string) bool { return session == k.session }
