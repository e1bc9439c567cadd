package rpc

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
)

// rounds sends as many messages at once as it is told to, each of some size.
type rounds struct {
	portcullisv1connect.UnimplementedBootHandler
	tell chan int
}

const roundText = 100

func (r rounds) WatchSessions(ctx context.Context, _ *connect.Request[v1.WatchSessionsRequest], s *connect.ServerStream[v1.WatchSessionsResponse]) error {
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case n, more := <-r.tell:
			if !more {
				return nil
			}
			for i := range n {
				if err := s.Send(&v1.WatchSessionsResponse{Session: &v1.Session{Id: fmt.Sprint(i), Address: strings.Repeat("x", i*roundText)}}); err != nil {
					return err
				}
			}
		}
	}
}

// Who waits for each message before it is read gets all of them, however many come at
// once, and hears of the stream's end, whoever ends it; and waits where there is none.
func TestLeanStreamsAreHeld(t *testing.T) {
	for name, end := range map[string]func(tell chan int, cancel func()){
		"its server ends it": func(tell chan int, _ func()) { close(tell) },
		"it is given up":     func(_ chan int, cancel func()) { cancel() },
	} {
		t.Run(name, func(t *testing.T) {
			path, tell := filepath.Join(t.TempDir(), "s", "boot.sock"), make(chan int)
			serveThat(t, path, rounds{tell: tell})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			held, wire := Held(To(ctx, path))
			go func() { tell <- 1 }() // the head of the answer comes with it
			st, err := portcullisv1connect.NewBootClient(Lean(), BaseURL).WatchSessions(held, connect.NewRequest(&v1.WatchSessionsRequest{}))
			if err != nil {
				t.Fatal(err)
			}
			defer st.Close()
			wait := func() chan struct{} {
				over := make(chan struct{})
				go func() { wire.Wait(); close(over) }()
				return over
			}
			heard := func(over chan struct{}) {
				t.Helper()
				select {
				case <-over:
				case <-time.After(20 * time.Second):
					t.Fatal("nobody was told")
				}
			}
			heard(wait())
			if !st.Receive() {
				t.Fatal(st.Err())
			}
			for _, n := range []int{1, 2, 30} {
				over := wait()
				select {
				case <-over:
					t.Fatal("there was nothing to wait for")
				case <-time.After(20 * time.Millisecond):
				}
				tell <- n
				heard(over)
				for i := range n {
					heard(wait())
					if !st.Receive() || st.Msg().Session.Id != fmt.Sprint(i) || len(st.Msg().Session.Address) != i*roundText {
						t.Fatalf("message %d of %d: %v", i, n, st.Err())
					}
				}
			}
			over := wait()
			end(tell, cancel)
			heard(over)
			if st.Receive() {
				t.Error("a message after the end")
			}
		})
	}
}

// A call that is nobody's stream leaves nothing to wait for.
func TestHeldWithoutAStream(t *testing.T) {
	_, wire := Held(t.Context())
	wire.Wait()
}
