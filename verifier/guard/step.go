package guard

import "context"

// stepLock is a lock that is waited for until a context ends.
type stepLock chan struct{}

func newStepLock() stepLock { return make(stepLock, 1) }

func (l stepLock) Lock()   { l <- struct{}{} }
func (l stepLock) Unlock() { <-l }

// within takes the lock, unless ctx ends before.
func (l stepLock) within(ctx context.Context) error {
	select {
	case l <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
