package deadline

import "time"

// Meaning of one answer's time.
type Meaning int

// Meanings; the zero value is not one of them.
const (
	InTime Meaning = iota + 1
	// Slow is worth a line in the record, once in a window.
	Slow
	// Again is told already, or may be chance.
	Again
	// Repeated slowness makes a suspect, once in a window.
	Repeated
)

// Row is how many slow answers in a row are no longer chance.
const Row = 8

// Watch weighs slow answers of one session. A busy PC gives single ones, and a
// few in a row until the model has followed; one that is slowed down for good,
// or that asks somebody else, gives nothing else. Nothing here counts as a
// failure: by slowness alone no PC is quarantined.
type Watch struct {
	Window time.Duration
	row    int
	told   time.Time
	raised time.Time
}

// See takes one answer's time.
func (w *Watch) See(now time.Time, took, limit time.Duration) Meaning {
	if took <= limit {
		w.row = 0
		return InTime
	}
	w.row++
	switch {
	case w.row >= Row && (w.raised.IsZero() || now.Sub(w.raised) >= w.Window):
		w.row, w.raised, w.told = 0, now, now
		return Repeated
	case w.told.IsZero() || now.Sub(w.told) >= w.Window:
		w.told = now
		return Slow
	}
	return Again
}
