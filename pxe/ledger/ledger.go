// Package ledger is the served-ledger: what left for the PC, byte range by byte
// range, with its digest. A piece is recorded before it is sent, so that no
// kill and no crash can make a byte that was sent be missing (invariant 3);
// when a response is over, one more entry says how much of it the kernel took.
//
// Only pxe writes it; `portcullis ledger` reads it.
package ledger

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"hash"
	"slices"
	"sync"
	"time"

	"portcullis/internal/journal"
)

// Ledger is the open ledger. It is safe for concurrent use.
type Ledger struct {
	now     func() time.Time
	journal *journal.Journal

	mu sync.Mutex
	id uint64
}

// Open opens the ledger at path, hands every entry to each, and closes the
// responses that a killed server left open. Responses in flight are handed to
// each as interrupted ones.
func Open(path string, now func() time.Time, each func(Entry)) (*Ledger, journal.Report, error) {
	l := &Ledger{now: now}
	inFlight := map[uint64]Entry{}
	j, report, err := journal.Open(path, func(r journal.Record) error {
		e, err := decode(r.Payload)
		if err != nil {
			return err
		}
		l.id = max(l.id, e.ID)
		track(inFlight, e)
		each(e)
		return nil
	})
	if err != nil {
		return nil, report, fmt.Errorf("served-ledger: %w", err)
	}
	l.journal = j
	open := make([]Entry, 0, len(inFlight))
	for _, e := range inFlight {
		open = append(open, e)
	}
	slices.SortFunc(open, func(a, b Entry) int { return cmp.Compare(a.ID, b.ID) })
	for _, e := range open {
		e.Kind, e.Result, e.SHA256, e.EndMS = KindResponse, Interrupted, "", now().UnixMilli()
		if err := l.append(e); err != nil {
			j.Close()
			return nil, report, err
		}
		each(e)
	}
	return l, report, nil
}

// track keeps, for each response that has pieces but no end, their sum.
func track(inFlight map[uint64]Entry, e Entry) {
	if e.Kind == KindResponse {
		delete(inFlight, e.ID)
		return
	}
	if sum, ok := inFlight[e.ID]; ok {
		sum.Length += e.Length
		e = sum
	}
	inFlight[e.ID] = e
}

// Sync returns once all that was recorded before is on the disk.
func (l *Ledger) Sync() error { return l.journal.Sync() }

// Close syncs and closes the ledger.
func (l *Ledger) Close() error { return l.journal.Close() }

// Head returns the number of records and the hash of the chain.
func (l *Ledger) Head() (uint64, journal.Hash) { return l.journal.Head() }

func (l *Ledger) append(e Entry) error {
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = l.journal.Append(b)
	return err
}

func (l *Ledger) nextID() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.id++
	return l.id
}

// Packet records one whole packet before it is sent. Session, Artefact,
// Manifest, Transport and Client are taken from e.
func (l *Ledger) Packet(e Entry, packet []byte) error {
	sum := sha256.Sum256(packet)
	t := l.now().UnixMilli()
	e.Kind, e.ID, e.Offset, e.Length, e.SHA256 = KindResponse, l.nextID(), 0, int64(len(packet)), hex.EncodeToString(sum[:])
	e.Result, e.BeginMS, e.EndMS = Complete, t, t
	return l.append(e)
}

// Response is one response that is being sent. It belongs to one goroutine.
type Response struct {
	ledger *Ledger
	entry  Entry
	next   int64 // offset of the next piece
	sum    hash.Hash
}

// Begin starts a response at e.Offset; of e also Session, Artefact, Manifest,
// Transport and Client are taken. Nothing is written before the first piece.
func (l *Ledger) Begin(e Entry) *Response {
	e.Kind, e.ID, e.Length, e.SHA256, e.Result = KindResponse, l.nextID(), 0, "", ""
	e.BeginMS, e.EndMS = l.now().UnixMilli(), 0
	return &Response{ledger: l, entry: e, next: e.Offset, sum: sha256.New()}
}

// Piece records the bytes that come next. They may be sent only when it returned nil.
func (r *Response) Piece(b []byte) error {
	sum := sha256.Sum256(b)
	e := r.entry
	e.Kind, e.Offset, e.Length, e.SHA256 = KindPiece, r.next, int64(len(b)), hex.EncodeToString(sum[:])
	e.BeginMS = r.ledger.now().UnixMilli()
	if err := r.ledger.append(e); err != nil {
		return err
	}
	r.next += int64(len(b))
	return nil
}

// Sent notes which bytes the kernel took.
func (r *Response) Sent(b []byte) {
	r.sum.Write(b)
	r.entry.Length += int64(len(b))
}

// Length returns how many bytes were sent so far.
func (r *Response) Length() int64 { return r.entry.Length }

// End records the end of the response. Result is one of the results, a cut one
// with its reason behind a colon.
func (r *Response) End(result string) error {
	e := r.entry
	e.Result, e.SHA256, e.EndMS = result, hex.EncodeToString(r.sum.Sum(nil)), r.ledger.now().UnixMilli()
	return r.ledger.append(e)
}
