package room

import (
	"runtime"
	"sync"
	"testing"
)

func TestPlaces(t *testing.T) {
	r := New[string](3, 2)
	leave := map[string][]func(){}
	for _, c := range []struct {
		who string
		in  bool
	}{
		{"a", true}, {"a", true}, {"a", false}, {"b", true}, {"c", false}, {"b", false},
		{"-a", true}, {"c", true}, {"b", false}, {"-b", true}, {"a", true}, {"a", false},
	} {
		if c.who[0] == '-' {
			who := c.who[1:]
			leave[who][0]()
			leave[who][0]() // is nothing
			leave[who] = leave[who][1:]
			continue
		}
		out, ok := r.Enter(c.who)
		if ok != c.in || ok != (out != nil) {
			t.Errorf("%s comes in: %t, want %t", c.who, ok, c.in)
		}
		if ok {
			leave[c.who] = append(leave[c.who], out)
		}
	}
	for _, all := range leave {
		for _, out := range all {
			out()
		}
	}
	if n := r.Inside(); n != 0 || len(r.of) != 0 {
		t.Errorf("%d are inside, known are %v", n, r.of)
	}
}

// Who comes while another leaves finds the place or does not, and none is lost or there twice.
func TestPlacesAtOnce(t *testing.T) {
	r := New[int](4, 2)
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			for range 1000 {
				if out, ok := r.Enter(i % 3); ok {
					go out()
					out()
				}
			}
		})
	}
	all.Wait()
	for r.Inside() > 0 { // the leaves that were begun
		runtime.Gosched()
	}
	for i := range 4 {
		if _, ok := r.Enter(i); !ok {
			t.Errorf("place %d is lost", i)
		}
	}
	if _, ok := r.Enter(4); ok {
		t.Error("there is one place too many")
	}
}
