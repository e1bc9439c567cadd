package record

import "time"

// Refusals cost the card a write each, and whoever can reach the guard can ask as
// often as it likes. So the first of a kind is written at once, what is the same
// within foldFor is counted and written as one, and beyond a budget only the kind
// and the reason are kept.
const (
	foldFor      = 10 * time.Second
	refuseBurst  = 200
	refusePerSec = 2
	maxFolds     = 256
)

type foldKey struct{ action, reason, image, caller string }

type fold struct {
	refusal Refusal // the latest, with the count of those not written
	since   time.Time
}

// folding decides which refusals are written when. It is pure.
type folding struct {
	open   map[foldKey]*fold
	tokens float64
	filled time.Time
}

// add takes a refusal and tells whether it is to be written now; else it is counted.
func (f *folding) add(r Refusal, now time.Time) (write bool) {
	if f.open == nil {
		f.open, f.tokens, f.filled = map[foldKey]*fold{}, refuseBurst, now
	}
	if d := now.Sub(f.filled); d > 0 {
		f.tokens, f.filled = min(refuseBurst, f.tokens+d.Seconds()*refusePerSec), now
	}
	key := foldKey{r.Action, r.Reason, r.Image, r.Caller}
	if o := f.open[key]; o != nil {
		r.Count += o.refusal.Count
		o.refusal = r
		return false
	}
	if f.tokens < 1 || len(f.open) >= maxFolds {
		r.Image, r.Caller, r.Detail = "", "", "more than can be told apart"
		key = foldKey{action: r.Action, reason: r.Reason}
		if o := f.open[key]; o != nil {
			r.Count += o.refusal.Count
			o.refusal = r
			return false
		}
		f.open[key] = &fold{r, now}
		return false
	}
	f.tokens--
	counted := r
	counted.Count = 0
	f.open[key] = &fold{counted, now}
	return true
}

// due takes out what was counted for foldFor, all with the flag.
func (f *folding) due(now time.Time, all bool) (out []Refusal) {
	for key, o := range f.open {
		if !all && now.Sub(o.since) < foldFor {
			continue
		}
		if o.refusal.Count > 0 {
			out = append(out, o.refusal)
		}
		delete(f.open, key)
	}
	return out
}
