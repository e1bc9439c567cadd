package guard

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"portcullis/verifier/image"
)

// trickle gives n bytes at a time, each time after a while, until the caller's time is over.
type trickle struct {
	n     int
	every time.Duration
	now   time.Time
	until time.Time
	gave  int
	total int
}

func (t *trickle) Read(b []byte) (int, error) {
	t.now = t.now.Add(t.every)
	if t.now.After(t.until) {
		return 0, os.ErrDeadlineExceeded
	}
	n := min(t.n, len(b), t.total-t.gave)
	t.gave += n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// TestAttack_LoadWithoutEnd: who sends a byte now and then would keep one of the few places for ever, and who sends
// more than there is room for would take the room that the log needs.
func TestAttack_LoadWithoutEnd(t *testing.T) {
	for name, c := range map[string]struct {
		n      int
		every  time.Duration
		total  int
		free   int64
		reason string
		atMost int
	}{
		"a byte a second":            {1, time.Second, 1 << 20, 1 << 30, ReasonSlow, 30},
		"nothing":                    {1, time.Hour, 1 << 20, 1 << 30, ReasonSlow, 0},
		"just quick enough":          {4 << 10, time.Second, 1 << 20, 1 << 30, "", 1 << 20},
		"a little too slow":          {2 << 10, time.Second, 1 << 20, 1 << 30, ReasonSlow, 60 << 10},
		"a pause, and then quick":    {64 << 10, 29 * time.Second, 1 << 20, 1 << 30, "", 1 << 20},
		"no room":                    {1 << 10, 0, 1 << 20, intakeRoom - 1, ReasonRoom, 0},
		"room for a part":            {1 << 20, 0, 64 << 20, intakeRoom + 20<<20, ReasonRoom, 24 << 20},
		"all of it, and no more":     {1 << 20, 0, 64 << 20, intakeRoom + 64<<20, "", 64 << 20},
		"time goes by between reads": {32 << 10, 0, 1 << 20, 1 << 30, "", 1 << 20},
	} {
		from := &trickle{n: c.n, every: c.every, total: c.total, now: time.Unix(1700000000, 0)}
		i := &intake{from: from, until: func(at time.Time) error { from.until = at; return nil }, left: intakeTime,
			now: func() time.Time { return from.now }, free: func() (int64, error) { return c.free - int64(from.gave), nil }}
		buf := make([]byte, 1<<20)
		var err error
		for err == nil {
			_, err = i.Read(buf)
			if name == "time goes by between reads" {
				from.now = from.now.Add(time.Hour) // a slow card of ours is not the caller's fault
			}
		}
		reason := Reason(err)
		if errors.Is(err, io.EOF) {
			reason = ""
		}
		if reason != c.reason || from.gave > c.atMost || reason == "" && from.gave != c.total {
			t.Errorf("%s: %v after %d bytes", name, err, from.gave)
		}
	}
	if free, err := freeOn(t.TempDir()); err != nil || free <= 0 {
		t.Errorf("%d bytes are free: %v", free, err)
	}
	if _, err := freeOn("/none"); err == nil {
		t.Error("a disk that is not there has room")
	}
}

// TestAttack_CrowdOfLoads: each archive that is read takes memory and disk. Few are read at once, whoever sends them,
// and root does not wait behind the others.
func TestAttack_CrowdOfLoads(t *testing.T) {
	var mu sync.Mutex
	now, most := 0, 0
	entered, release := make(chan bool, 8), make(chan struct{})
	g := before(t, &listed{}, func(o *Options) {
		o.Read = func(ctx context.Context, from io.Reader, _ image.Options) (*image.Archive, error) {
			text, err := io.ReadAll(from)
			if string(text) != "root" {
				mu.Lock()
				now++
				most = max(most, now)
				mu.Unlock()
				defer func() { mu.Lock(); now--; mu.Unlock() }()
			}
			entered <- string(text) == "root"
			<-release
			return nil, errors.Join(err, errors.New("read"))
		}
	})
	var all sync.WaitGroup
	load := func(caller string) {
		all.Go(func() {
			r := httptest.NewRequest("POST", "/v1.41/images/load", bytes.NewReader([]byte(map[bool]string{true: "root", false: "other"}[caller == "uid 0"])))
			r.RequestURI = "/v1.41/images/load"
			r.Header.Set("Content-Type", "application/x-tar")
			g.ServeHTTP(httptest.NewRecorder(), r.WithContext(context.WithValue(r.Context(), callerKey{}, &watched{caller: caller})))
		})
	}
	for range 3 * maxLoads {
		load("uid 1000")
	}
	for range maxLoads {
		if <-entered {
			t.Fatal("root is in there already")
		}
	}
	load("uid 0")
	if !<-entered {
		t.Error("more are read at once than there are places")
	}
	close(release)
	all.Wait()
	if most != maxLoads {
		t.Errorf("%d were read at once", most)
	}
	// Who goes away does not wait for a place.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range maxLoads {
		g.loads <- struct{}{}
	}
	if _, err := g.enter(ctx, "uid 1000"); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}
