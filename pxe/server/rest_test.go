package server

import (
	"errors"
	"os/exec"
	"testing"
	"time"

	"connectrpc.com/connect"

	api "portcullis/api/portcullis/v1"
	"portcullis/internal/rpc"
	"portcullis/pxe/dhcp"
)

// rested waits until pxed has ended because its boot is done.
func (b *bench) rested() {
	b.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- b.cmd.Wait() }()
	select {
	case err := <-ended:
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != rpc.ExitAtRest {
			b.t.Fatalf("it ended with %v", err)
		}
	case <-time.After(30 * time.Second):
		b.t.Fatal("it serves on though the boot is done")
	}
}

// A boot is done: pxed ends, and nothing of it listens. Started again it knows the
// session, ends again, and a boot request ends the trust as if it had never been away.
func TestRestsWhenTheBootIsDone(t *testing.T) {
	t.Setenv(restEnv, "100ms")
	b := newBench(t, "")
	b.start()
	c := b.pcSocket(dhcp.PortClient)
	first := sessionOf(t, b.discover(c, 1, asHTTP))
	b.lease()
	// Longer than it would have to wait after a claim: a boot that is not done goes on.
	time.Sleep(youngFor*100*time.Millisecond + 300*time.Millisecond)
	b.fetchAll(first)
	if r := b.claim(first, newKey(t), 0); !r.Accepted {
		t.Fatal(r.Reason)
	}
	b.rested()
	b.start()
	r, err := b.boot().GetSession(t.Context(), connect.NewRequest(&api.GetSessionRequest{Id: first}))
	if err != nil || r.Msg.Session.State != api.SessionState_SESSION_STATE_CLAIMED {
		t.Fatalf("%v %v", r, err)
	}
	b.rested()
	b.start()
	if second := sessionOf(t, b.discover(c, 9, asHTTP)); second == first {
		t.Error("the session of a trusted machine went on")
	}
	time.Sleep(youngFor*100*time.Millisecond + 300*time.Millisecond)
	if s := b.newest(); s.State != api.SessionState_SESSION_STATE_OFFERED {
		t.Errorf("the new session is %v", s.State)
	}
}
