package run

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"portcullis/agent/channel"
	"portcullis/agent/claim"
	"portcullis/attestserver/protocol"
)

func TestWaitsGrowToASecondAndLongerForRefusals(t *testing.T) {
	gone := errors.New("connection reset")
	wait := firstWait
	for range 20 {
		wait = next(wait, gone)
	}
	if wait != longestWait {
		t.Errorf("after many failures %v", wait)
	}
	if w := next(firstWait, &channel.RefusedError{Reason: protocol.ClaimUnavailable}); w != 2*firstWait {
		t.Errorf("pxed away: %v", w)
	}
	for range 20 {
		wait = next(wait, &channel.RefusedError{Reason: "claim-late"})
	}
	if wait != refusedWait {
		t.Errorf("refused for good: %v", wait)
	}
}

func TestReasonsAreTyped(t *testing.T) {
	for want, err := range map[string]error{
		"claim-late":        fmt.Errorf("x: %w", &channel.RefusedError{Reason: "claim-late"}),
		"gateway-key":       fmt.Errorf("x: %w", protocol.ErrPin),
		"claim-binding":     fmt.Errorf("x: %w", protocol.ErrBinding),
		"gateway-down":      fmt.Errorf("x: %w", protocol.ErrDown),
		"gateway-malformed": fmt.Errorf("x: %w", protocol.ErrFrame),
		"connection":        errors.New("x"),
	} {
		if got := reason(err); got != want {
			t.Errorf("%v: %s, want %s", err, got, want)
		}
	}
}

func TestErrorTextIsBoundedUTF8(t *testing.T) {
	for _, s := range []string{"", "plain", "\xff\xfe", strings.Repeat("ä", protocol.MaxReasonBytes)} {
		b := bounded(s)
		if !utf8.ValidString(b) || len(b) > protocol.MaxReasonBytes {
			t.Errorf("%d bytes, valid %v", len(b), utf8.ValidString(b))
		}
	}
}

// The agent outlives a gateway that is not there, says so once, and ends with
// its context.
func TestAgentGoesOnWithoutAGateway(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	key, err := claim.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 100)
	a := &Agent{Address: address, Facts: claim.Facts{Session: strings.Repeat("a", 26), Gateway: key.Public()}, Key: key, Log: func(s string) { lines <- s }}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	if s := <-lines; !strings.HasPrefix(s, "state=disconnected reason=connection") {
		t.Errorf("said %q", s)
	}
	// It tries again: a listener that appears gets a connection.
	l, err = net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	l.(*net.TCPListener).SetDeadline(time.Now().Add(10 * time.Second))
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
}
