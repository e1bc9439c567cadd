package action

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"portcullis/attestserver/policy"
	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/internal/journal"
)

// The test binary is a service with an engine in it when it is told so.
func TestMain(m *testing.M) {
	if dir := os.Getenv("TEST_IS_ENGINE"); dir != "" {
		if err := service(dir, os.Getenv("TEST_WEBHOOK")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// slowPC and slowGatewayd take their time, so that a kill meets them at work; what
// they did stands in a file that outlives the process.
type slowPC struct {
	rig  *rig
	log  string
	hung *atomic.Bool // the agent hangs up after each Down, and comes back
}

func (p slowPC) Session() string { return p.rig.Session() }
func (p slowPC) Agent() bool     { return !p.hung.Swap(false) }
func (p slowPC) Down(_ context.Context, id [16]byte, _ string, _ bool) error {
	time.Sleep(5 * time.Millisecond)
	if err := appendLine(p.log, "down "+ID(id).String()); err != nil {
		return err
	}
	time.Sleep(5 * time.Millisecond)
	p.hung.Store(true)
	return nil
}

func appendLine(path, line string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(f, line)
	return errors.Join(err, f.Close())
}

// service fires a rule for each line on stdin, names it on stdout once it is posted, and goes
// on until it is killed or stdin ends and nothing is open.
func service(dir, webhook string) error {
	t, err := NewTarget("ops", webhook, filepath.Join(dir, "secret"), "")
	if err != nil {
		return err
	}
	r := newRig()
	e, err := Open(Options{Journal: filepath.Join(dir, "actions.journal"), PC: slowPC{r, filepath.Join(dir, "did"), new(atomic.Bool)}, Gateway: r, Webhooks: []*Target{t},
		Ladder: Ladder{Rungs: []Rung{RungAgent}, Within: 20 * time.Millisecond}, Events: event.NewJSON(io.Discard, "attestd", time.Now), Clock: clock.Real{}, Random: rand.Reader})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		rule := policy.Rule{Name: in.Text(), Then: []policy.Action{policy.Report, policy.Webhook, policy.Quarantine, policy.Reboot}}
		if err := e.Post(policy.Firing{Rule: &rule, Claims: policy.Claims{State: "suspect", Session: one}, Time: time.Now()}); err != nil {
			return err
		}
		fmt.Println(in.Text())
	}
	limit := time.Now().Add(30 * time.Second)
	for open := -1; open != 0; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(limit) {
			return fmt.Errorf("%d actions never end", open)
		}
		began, over := map[string]bool{}, 0
		var all []Record
		_, err := journal.ReadFile(filepath.Join(dir, "actions.journal"), func(rec journal.Record) error {
			r, err := ParseRecord(rec.Payload)
			all = append(all, r)
			return err
		})
		if err != nil {
			return err
		}
		for _, rec := range all {
			switch rec.State {
			case stateBegun:
				began[rec.ID] = true
			case stateEnded:
				over++
			}
		}
		open = len(began) - over
	}
	cancel()
	return errors.Join(<-ended, e.Close())
}

// TestNothingIsLostOverKill9 kills the process again and again while it works. What was
// posted ends, each action once; what was delivered twice has one id.
func TestNothingIsLostOverKill9(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "secret"), []byte(secretText), 0o600); err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	delivered := map[string]map[string]bool{} // rule → ids
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		body, _ := io.ReadAll(q.Body)
		m, err := Verify([]byte(secretText), q.Header, body, time.Now())
		if err != nil {
			t.Error(err)
			return
		}
		time.Sleep(3 * time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		if delivered[m.Rule] == nil {
			delivered[m.Rule] = map[string]bool{}
		}
		delivered[m.Rule][m.ID] = true
	}))
	defer hook.Close()
	var posted []string
	n := 0
	life := func(kill bool, rules int) {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), "TEST_IS_ENGINE="+dir, "TEST_WEBHOOK="+hook.URL)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		if !lines.Scan() || lines.Text() != "ready" {
			t.Fatalf("said %q", lines.Text())
		}
		for range rules {
			n++
			fmt.Fprintf(in, "rule-%d\n", n)
			if !lines.Scan() {
				t.Fatal("the service ended")
			}
			posted = append(posted, lines.Text())
		}
		if kill {
			cmd.Process.Kill() // at whatever it is doing
			cmd.Wait()
			return
		}
		in.Close()
		io.Copy(io.Discard, out)
		if err := cmd.Wait(); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 12 {
		life(true, i%4+1)
	}
	life(false, 1)

	ends, begun := map[string]int{}, map[string]int{}
	state := map[string]Record{}
	for _, r := range records(t, filepath.Join(dir, "actions.journal")) {
		switch r.State {
		case stateBegun:
			begun[r.Rule]++
		case stateEnded:
			if _, twice := state[r.ID]; twice {
				t.Errorf("%s %s ended twice", r.Rule, r.Action)
			}
			state[r.ID] = r
			ends[r.Rule]++
			if r.Result == ResultFailed && r.Reason != ReasonNoRung {
				t.Errorf("%+v", r)
			}
		}
	}
	did, err := os.ReadFile(filepath.Join(dir, "did"))
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range posted {
		if begun[rule] != 4 || ends[rule] != 4 {
			t.Errorf("%s: %d actions begun, %d ended", rule, begun[rule], ends[rule])
		}
		if len(delivered[rule]) != 1 {
			t.Errorf("%s: delivered under %d ids", rule, len(delivered[rule]))
		}
	}
	for id, r := range state {
		if r.Action == policy.Reboot && r.Reason == ReasonNoRung && !strings.Contains(string(did), "down "+id) {
			t.Errorf("the reboot %s ended and the agent was never told", id)
		}
	}
}
