package nft

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/gateway/policy"
	"portcullis/internal/netns"
)

// ports is a namespace with the ports pc0, pc1 and so on, the static deny of a rack, and a gatewayd's Kernel for each.
func ports(t testing.TB, n int, unowned bool) (gw *netns.Host, list []*Kernel) {
	t.Helper()
	pc, gw, _ := wire(t)
	for i := range n - 1 {
		if err := netns.Veth(pc, fmt.Sprint("eth", i+1), gw, fmt.Sprint("pc", i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := gw.Run(context.Background(), "nft", "-D", "port=pc*", "-f", "../../systemd/portcullis-deny-rack.nft"); err != nil {
		t.Fatal(err)
	}
	for i := range n {
		k := open(t, gw, Options{PC: fmt.Sprint("n", i), Interface: fmt.Sprint("pc", i), Unowned: unowned})
		if err := k.Apply(of(t, k.opt.PC, k.opt.Interface, policy.Attest)); err != nil {
			t.Fatal(err)
		}
		list = append(list, k)
	}
	return gw, list
}

// BenchmarkRackChange is what one change by one gatewayd of a rack costs all the others, which look at it: a run that is
// renewed, as after each verdict, and a port that is moved to another phase. cpu-us/op is of the change and all looks.
func BenchmarkRackChange(b *testing.B) {
	for _, n := range []int{2, 5, 10, 20, 50} {
		for _, what := range []string{"renew", "move"} {
			b.Run(fmt.Sprintf("%s/ports=%d", what, n), func(b *testing.B) {
				_, list := ports(b, n, false)
				changed := list[0]
				rs := of(b, "n0", "pc0", policy.Run, "203.0.113.10:80/tcp")
				if err := changed.Apply(rs); err != nil {
					b.Fatal(err)
				}
				look := func() {
					for _, k := range list[1:] {
						if found, err := k.Restore(); err != nil || len(found) > 0 {
							b.Fatal(found, err)
						}
					}
				}
				look()
				look()
				before := cpu(b)
				for b.Loop() {
					var err error
					if what == "renew" {
						err = changed.SetRun(rs)
					} else {
						err = changed.Apply(rs)
					}
					if err != nil {
						b.Fatal(err)
					}
					look()
				}
				b.ReportMetric(float64((cpu(b)-before).Microseconds())/float64(b.N), "cpu-us/op")
			})
		}
	}
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
