package netns

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
)

var labs atomic.Int64

// Lab makes the hosts of one test or one lab run and removes them together. The
// names are PREFIX-PID-N-HOST, so that two labs run side by side and Sweep can
// tell which were left by the dead.
type Lab struct {
	prefix string
	mu     sync.Mutex
	hosts  []*Host
	closed bool
}

// NewLab sweeps what dead makers of the same prefix left and begins an empty lab.
func NewLab(prefix string) (*Lab, error) {
	if !nameForm.MatchString(prefix) {
		return nil, fmt.Errorf("netns: prefix %q: lower-case letters, digits and dashes only", prefix)
	}
	if err := Sweep(prefix); err != nil {
		return nil, err
	}
	return &Lab{prefix: fmt.Sprintf("%s-%d-%d", prefix, os.Getpid(), labs.Add(1))}, nil
}

// Host adds a host; name is a short word such as pc, gw or up.
func (l *Lab) Host(name string) (*Host, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, errors.New("netns: lab is closed")
	}
	h, err := New(l.prefix + "-" + name)
	if err != nil {
		return nil, err
	}
	l.hosts = append(l.hosts, h)
	return h, nil
}

// Close removes all hosts, the last made first. It may be called twice.
func (l *Lab) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	var errs []error
	for i := len(l.hosts) - 1; i >= 0; i-- {
		errs = append(errs, l.hosts[i].Close())
	}
	return errors.Join(errs...)
}

// TB is what ForTest needs of a *testing.T or *testing.B.
type TB interface {
	Helper()
	Cleanup(func())
	Errorf(format string, args ...any)
	Fatal(args ...any)
}

// ForTest makes one host a name, removed when the test ends, also when it fails.
func ForTest(t TB, names ...string) []*Host {
	t.Helper()
	l, err := NewLab("pctest")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	hosts := make([]*Host, len(names))
	for i, n := range names {
		if hosts[i], err = l.Host(n); err != nil {
			t.Fatal(err)
		}
	}
	return hosts
}
