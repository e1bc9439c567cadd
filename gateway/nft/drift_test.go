package nft

import (
	"context"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
)

// Where the kernel has no owner flag any root process can edit the tables. It is
// noticed by event, undone, and the editor is named.
func TestForeignEditIsSeenUndoneAndAttributed(t *testing.T) {
	_, gw, _ := wire(t)
	k := open(t, gw, Options{Unowned: true})
	rs := ruleset.Build(phase(t, policy.Attest))
	if err := k.Apply(rs); err != nil {
		t.Fatal(err)
	}
	if k.Owned() {
		t.Fatal("the tables are owned")
	}
	ctx, cancel := context.WithCancel(context.Background())
	editors, restored := make(chan Editor, 64), make(chan time.Time, 64)
	watching, listens := make(chan error, 1), make(chan struct{})
	go func() {
		watching <- k.Watch(ctx, func(e Editor) {
			if e == (Editor{}) {
				close(listens)
			}
			drifted, err := changed(k)
			if err != nil {
				t.Error(err)
			}
			if drifted {
				restored <- time.Now()
				editors <- e
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-watching; err != nil {
			t.Error(err)
		}
	})
	<-listens
	before := list(t, gw)
	for _, edit := range []string{
		"insert rule inet portcullis from-pc accept",
		"flush chain netdev portcullis-link link-ip",
		"add rule inet portcullis forward-from-pc accept; add chain inet portcullis mine",
		"delete table netdev portcullis-link",
		"delete table inet portcullis; delete table netdev portcullis-link",
		"add chain inet portcullis hole { type filter hook prerouting priority -400; policy accept; }",
	} {
		edited := time.Now()
		if _, err := gw.Run(ctx, "nft", edit); err != nil {
			t.Fatalf("%s: %v", edit, err)
		}
		select {
		case at := <-restored:
			if e := <-editors; e.Comm != "nft" || e.PID == 0 {
				t.Errorf("%s: the editor is %+v", edit, e)
			}
			t.Logf("%-60s undone %s after nft was started", edit, at.Sub(edited).Round(10*time.Microsecond))
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: not noticed", edit)
		}
		if after := list(t, gw); plain(after) != plain(before) {
			t.Errorf("%s: the ruleset is not what it was:\n%s", edit, after)
		}
	}
}

// changed tells whether there was anything to put back.
func changed(k *Kernel) (bool, error) {
	found, err := k.Restore()
	return len(found) > 0, err
}

// plain takes out what counts or counts down.
func plain(text string) string {
	var keep []string
	for _, line := range strings.Split(text, "\n") {
		// nft of Debian 13 gives each element a line.
		if !strings.Contains(line, "packets ") && !strings.Contains(line, "elements") && !strings.Contains(line, "expires ") {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "\n")
}

// Our own transactions, elements that the kernel adds and counters are no drift.
func TestOwnChangesAreNoDrift(t *testing.T) {
	pc, gw, _ := wire(t)
	k := open(t, gw, Options{})
	if err := pc.Address("eth0", netip.MustParsePrefix("10.77.0.2/24")); err != nil {
		t.Fatal(err)
	}
	for _, to := range []policy.Phase{policy.Idle, policy.Run, policy.Quarantine, policy.Run} {
		rs := ruleset.Build(phase(t, to, "203.0.113.10:443/tcp"))
		if err := k.Apply(rs); err != nil {
			t.Fatal(err)
		}
		for _, f := range []func(*ruleset.Ruleset) error{k.SetRun, k.SetGrants} {
			if err := f(rs); err != nil {
				t.Fatal(err)
			}
		}
		// An ARP request from a wrong MAC: the dropping rule adds a strike.
		was, err := k.Counters()
		if err != nil {
			t.Fatal(err)
		}
		c, err := pc.Dial(context.Background(), "udp4", "10.77.0.1:9")
		if err != nil {
			t.Fatal(err)
		}
		c.Write([]byte("x"))
		c.Close()
		for now := was; now["mac-spoof"] == was["mac-spoof"]; time.Sleep(time.Millisecond) {
			if now, err = k.Counters(); err != nil {
				t.Fatal(err)
			}
		}
		if drifted, err := changed(k); drifted || err != nil {
			t.Errorf("%s: drift %v, %v", to, drifted, err)
		}
	}
	if !ourThread(uint32(os.Getpid())) || ourThread(1) || ourThread(0) {
		t.Error("our own threads are not told from others")
	}
}

// A ban and the counters are the kernel's: no apply and no new owner touches them.
func TestBansAndCountersOutliveApplyAndOwner(t *testing.T) {
	_, gw, _ := wire(t)
	k := open(t, gw, Options{Unowned: true})
	if err := k.Apply(ruleset.Build(phase(t, policy.Idle))); err != nil {
		t.Fatal(err)
	}
	if _, err := gw.Run(context.Background(), "nft", `add element netdev portcullis-link ban { "pc0" timeout 5m }`); err != nil {
		t.Fatal(err)
	}
	left, err := k.BanLeft()
	if err != nil || left <= 0 {
		t.Fatalf("ban has %s left, %v", left, err)
	}
	k.Close()
	k = open(t, gw, Options{Unowned: true})
	for _, to := range []policy.Phase{policy.Boot, policy.Run, policy.Idle} {
		if err := k.Apply(ruleset.Build(phase(t, to))); err != nil {
			t.Fatal(err)
		}
	}
	if now, err := k.BanLeft(); err != nil || now <= 0 || now > left {
		t.Errorf("ban has %s left, had %s, %v", now, left, err)
	}
	if _, err := k.Counters(); err != nil {
		t.Error(err)
	}
	// Another ban_after makes another set of strikes, and nothing else.
	p := phase(t, policy.Idle)
	p.Port.BanAfter = 9
	if err := k.Apply(ruleset.Build(p)); err != nil {
		t.Fatalf("changed ban_after: %v", err)
	}
	p.Port.BanAfter = 1
	if err := k.Apply(ruleset.Build(p)); err != nil {
		t.Fatalf("ban_after 1: %v", err)
	}
	if now, err := k.BanLeft(); err != nil || now <= 0 {
		t.Errorf("the ban is gone: %s, %v", now, err)
	}
}

func TestGrantsReadBack(t *testing.T) {
	_, gw, _ := wire(t)
	k := open(t, gw, Options{})
	if _, found, err := k.Grants(); found || err != nil {
		t.Fatalf("grants without a table: %v %v", found, err)
	}
	if err := k.Apply(ruleset.Build(phase(t, policy.Run, "203.0.113.10:443/tcp", "198.51.100.7:53/udp"))); err != nil {
		t.Fatal(err)
	}
	left, found, err := k.Grants()
	if err != nil || !found || len(left) != 2 {
		t.Fatalf("grants %v %v %v", left, found, err)
	}
	for target, d := range left {
		if s := target.String(); s != "203.0.113.10:443/tcp" && s != "198.51.100.7:53/udp" || d <= 59*time.Second || d > time.Minute {
			t.Errorf("%s has %s left", target, d)
		}
	}
}

func BenchmarkQuarantine(b *testing.B) {
	_, gw, _ := wire(b)
	k := open(b, gw, Options{})
	run, stop := ruleset.Build(phase(b, policy.Run, "203.0.113.10:443/tcp")), ruleset.Build(phase(b, policy.Quarantine, "203.0.113.10:443/tcp"))
	for b.Loop() {
		b.StopTimer()
		if err := k.Apply(run); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		if err := k.Apply(stop); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkGrantAdd(b *testing.B) {
	_, gw, _ := wire(b)
	k := open(b, gw, Options{})
	rs := ruleset.Build(phase(b, policy.Run, "203.0.113.10:443/tcp"))
	if err := k.Apply(rs); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if err := k.SetGrants(rs); err != nil {
			b.Fatal(err)
		}
	}
}
