package channel

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestListenWaitsForTheAddressToAppear(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	// 203.0.113.0/24 is documentation (RFC 5737): no machine has it.
	_, err := Listen(ctx, "203.0.113.77:7443", func(err error) {
		if !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Errorf("waits for %v", err)
		}
		cancel()
	})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("got %v", err)
	}
}

func TestListenTakesOverFromADyingProcess(t *testing.T) {
	old, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	l, err := Listen(ctx, old.Addr().String(), func(error) { old.Close() })
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
}

func TestListenRefusesWhatCannotBe(t *testing.T) {
	if _, err := Listen(context.Background(), "not an address", nil); err == nil {
		t.Error("listens on nothing")
	}
}
