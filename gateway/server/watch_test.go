package server

import (
	"context"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"connectrpc.com/connect"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/gateway/link"
	"portcullis/gateway/violation"
	"portcullis/internal/rpc"
)

// client reaches the fixture's service over a socket.
func (f *fixture) client() portcullisv1connect.GatewayClient {
	f.t.Helper()
	path := filepath.Join(f.dir, "g.sock")
	l, err := net.Listen("unix", path)
	f.must(err)
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewGatewayHandler(f.s))
	ctx, cancel := context.WithCancel(context.Background())
	f.t.Cleanup(cancel)
	go rpc.Serve(ctx, l, mux)
	return portcullisv1connect.NewGatewayClient(rpc.Client(path), rpc.BaseURL)
}

// rings is how often the bell was rung.
func (f *fixture) rings() (n uint64) {
	f.t.Helper()
	f.must(f.g.ask(context.Background(), func() { n = f.g.bell.rings }))
	return n
}

// Each change of grants and carrier is told; what comes and goes between two looks at
// the status is in its count.
func TestWatchTellsOfGrantsAndCarrier(t *testing.T) {
	f := newFixture(t)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	f.must(f.boot(one))
	stream, err := f.client().WatchGateway(ctx, connect.NewRequest(&v1.WatchGatewayRequest{}))
	f.must(err)
	defer stream.Close()
	heard := func() uint64 {
		t.Helper()
		if !stream.Receive() {
			t.Fatalf("the stream has ended: %v", stream.Err())
		}
		return stream.Msg().Changes
	}
	first := heard()
	want := func(changes, grants uint64) {
		t.Helper()
		// Two rings may come as one or as two.
		for n := heard(); n < first+changes; n = heard() {
		}
		if s := f.status(); s.GrantChanges != grants {
			t.Errorf("%d changes of grants, want %d", s.GrantChanges, grants)
		}
	}
	g, err := f.grant(time.Minute)
	f.must(err)
	want(1, 1)
	_, err = f.s.RevokeGrant(ctx, connect.NewRequest(&v1.RevokeGrantRequest{Id: g.Id}))
	f.must(err)
	want(2, 2)
	_, err = f.grant(time.Minute)
	f.must(err)
	want(3, 3)
	f.clock.advance(2 * time.Minute)
	want(4, 4)
	f.must(f.g.Link(ctx, link.State{Carrier: true}))
	want(5, 4)
	_, err = f.grant(time.Minute)
	f.must(err)
	want(6, 5)
	f.must(f.boot(two)) // ends the grant
	want(7, 6)
	// Violations are told of once a second at most. The owner is not waited for, so
	// one may go untold.
	rung := make(chan uint64, 1)
	go func() { rung <- heard() }()
	for told := false; !told; {
		f.g.Violation(violation.Violation{Reason: "not-granted"})
		select {
		case <-rung:
			told = true
		case <-time.After(5 * time.Millisecond):
		}
	}
	before := f.rings()
	for range 100 {
		f.g.Violation(violation.Violation{Reason: "not-granted"})
		f.status()
	}
	if n := f.rings(); n != before {
		t.Errorf("%d rings within one moment", n-before)
	}
	f.stop()
	if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeUnavailable {
		t.Errorf("after gatewayd's end: %v", stream.Err())
	}
}
