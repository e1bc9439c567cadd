package session

// watchQueue bounds the changes that wait for one watcher. A session has a
// handful; who is further behind has to connect again and gets the newest.
const watchQueue = 64

type watcher struct{ changes chan Session }

// Watch returns a channel that gets the newest session at once, when there is
// one, and then every change of state, until stop is called. The channel is
// closed when its reader falls too far behind.
func (m *Manager) Watch() (changes <-chan Session, stop func()) {
	w := &watcher{make(chan Session, watchQueue)}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watchers[w] = true
	if m.current != nil {
		w.changes <- m.current.copy()
	}
	return w.changes, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.watchers, w)
	}
}

// publish tells the watchers. The caller holds mu.
func (m *Manager) publish(e *entry) {
	for w := range m.watchers {
		select {
		case w.changes <- e.copy():
		default:
			close(w.changes)
			delete(m.watchers, w)
		}
	}
}
