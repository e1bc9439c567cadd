package violation

import (
	"context"
	"testing"
	"time"

	"portcullis/internal/netns"
)

// The group is bound while packets rain down on it, many times.
func TestReaderBindsUnderRain(t *testing.T) {
	host := netns.ForTest(t, "rain")[0]
	if _, err := host.Run(context.Background(), "nft", `table inet t { chain c { type filter hook output priority 0; meta l4proto udp log prefix "portcullis:output:rain" group 77; }; }`); err != nil {
		t.Fatal(err)
	}
	c, err := host.Dial(context.Background(), "udp4", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case <-stop:
				return
			default:
				c.Write([]byte("drop"))
			}
		}
	}()
	for range 20 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		bound, seen := false, 0
		err := NewReader(Options{NetNS: host.FD(), Group: 77, Now: time.Now}).Run(ctx, func() { bound = true }, func(v Violation) {
			if v.Reason != "rain" || v.Protocol != "udp" || v.Source != "127.0.0.1" {
				t.Errorf("read as %+v", v)
			}
			if seen++; seen >= 5 && bound {
				cancel()
			}
		})
		timedOut := ctx.Err() == context.DeadlineExceeded
		cancel()
		if err != nil || timedOut || !bound {
			t.Fatalf("bound %v after %d packets: %v", bound, seen, err)
		}
	}
}
