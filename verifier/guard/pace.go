package guard

import (
	"sync"

	"golang.org/x/time/rate"
)

// A permission is an entry of the log for ever and a write to the disk, and whoever has an approved image could
// cause one as often as it likes: a start of what runs already is one as well. So a caller has so many loads and
// starts at once and so many a second, which is more than a Pi gets done with containers that do something. Root,
// who could fill the disk in other ways, and the verifier's own services have no bound.
const (
	paceBurst  = 120
	pacePerSec = 1
)

// paces are those of the callers, of whom there are as many as the socket lets in.
type paces struct {
	mu sync.Mutex
	of map[string]*rate.Limiter
}

// paced refuses a load or a start of a caller who has had too many.
func (g *Guard) paced(caller string) error {
	if first(caller) {
		return nil
	}
	p := &g.paces
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.of == nil {
		p.of = map[string]*rate.Limiter{}
	}
	if p.of[caller] == nil {
		p.of[caller] = rate.NewLimiter(pacePerSec, paceBurst)
	}
	if !p.of[caller].AllowN(g.opt.Clock.Now(), 1) {
		return refuse(ReasonPace, "no more than %d loads and starts at once, and %d a second", paceBurst, pacePerSec)
	}
	return nil
}
