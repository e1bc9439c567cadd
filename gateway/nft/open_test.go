package nft

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
	"portcullis/internal/netns"
)

// Whatever is in the set: what stays is our port and what is judged of the others, what is told is what is
// neither, and nothing is told where nothing has to be changed.
func TestOpenIsComparedWithWhatIsJudged(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	names := []string{"lan.10", "lan.20", "lan.30", "lan.40", "a name of 16 byt", "lan.10\x00x", "", "\xff\xfe"}
	some := func(p float64) map[string]bool {
		out := map[string]bool{}
		for _, n := range names {
			if random.Float64() < p {
				out[n] = true
			}
		}
		return out
	}
	for range 20_000 {
		own, in, by := names[random.IntN(4)], some(random.Float64()), some(random.Float64())
		judged, elements := map[string]bool{}, []nftables.SetElement(nil)
		for n := range by {
			judged[string(ruleset.InterfaceKey(n))] = true
		}
		keeps, foreign := []string{own}, 0
		for n := range in {
			elements = append(elements, nftables.SetElement{Key: ruleset.InterfaceKey(n), Comment: "x"})
			switch {
			case n == own:
			case by[n]:
				keeps = append(keeps, n)
			default:
				foreign++
			}
		}
		everything := random.IntN(8) == 0
		if everything {
			elements = append(elements, nftables.SetElement{})
			foreign++
		}
		keep, found := compareOpen(elements, ruleset.InterfaceKey(own), judged)
		if len(keep) != len(keeps) {
			t.Fatalf("of %v with %v judged %v stays", in, by, keep)
		}
		for _, n := range keeps {
			if !slices.ContainsFunc(keep, func(e nftables.SetElement) bool { return string(e.Key) == string(ruleset.InterfaceKey(n)) }) {
				t.Fatalf("of %v with %v judged %q does not stay", in, by, n)
			}
		}
		want := map[Reason]int{}
		if !in[own] {
			want[OpenMissing] = 1
		}
		if foreign > 0 {
			want[OpenForeign] = foreign
		}
		for _, d := range found {
			if want[d.Reason] != len(d.Ports) {
				t.Fatalf("of %v with %v judged it tells %v", in, by, found)
			}
			if d.Reason == OpenForeign && slices.Contains(d.Ports, "*") != everything {
				t.Fatalf("an element for all: %v", found)
			}
		}
		if len(found) != len(want) {
			t.Fatalf("of %v with %v judged it tells %v", in, by, found)
		}
	}
}

// inOpen is what nft shows of the set open.
func inOpen(t testing.TB, gw *netns.Host) string {
	t.Helper()
	_, text, _ := strings.Cut(list(t, gw), "set open {")
	text, _, _ = strings.Cut(text, "\n\t}")
	_, text, _ = strings.Cut(text, "elements = {")
	found := regexp.MustCompile(`"[^"]*"|\*`).FindAllString(text, -1)
	slices.Sort(found)
	return strings.Join(found, " ")
}

func edit(t testing.TB, gw *netns.Host, text string) {
	t.Helper()
	if _, err := gw.Run(context.Background(), "nft", text); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
}

// TestInvariant01_OpenHoldsJudgedPortsOnly: what somebody puts into the set of open ports is told and taken out,
// what somebody takes out of it is told and put back, and so is a port whose own tables judge it no more.
func TestInvariant01_OpenHoldsJudgedPortsOnly(t *testing.T) {
	gw := twoPorts(t)
	a, b := open(t, gw, Options{PC: "a", Interface: "pc0", Unowned: true}), open(t, gw, Options{PC: "b", Interface: "pc1", Unowned: true})
	for _, err := range []error{a.Apply(of(t, "a", "pc0", policy.Attest)), b.Apply(of(t, "b", "pc1", policy.Run, "203.0.113.10:80/tcp"))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	const set = " element inet portcullis-deny open "
	for _, c := range []struct {
		edit  string
		found string // what a tells
		open  string // behind that
	}{
		{"add" + set + "{ pc9 }", "[{open-foreign [pc9]}]", `"pc0" "pc1"`},
		{"add" + set + `{ pc8, "x y", pc7 }`, "[{open-foreign [pc7 pc8 x y]}]", `"pc0" "pc1"`},
		{"add" + set + "{ * }", "[{open-foreign [*]}]", `"pc0" "pc1"`},
		{"add" + set + "{ * }; add" + set + "{ pc9 }", "[{open-foreign [* pc9]}]", `"pc0" "pc1"`},
		{"delete" + set + "{ pc0 }", "[{open-missing [pc0]}]", `"pc0" "pc1"`},
		{"flush set inet portcullis-deny open; add" + set + "{ pc9 }", "[{open-missing [pc0]} {open-foreign [pc9]}]", `"pc0"`},
		{"add table inet portcullis-deny { flags dormant; }; add" + set + "{ pc9 }", "[{deny-changed []} {open-foreign [pc9]}]", `"pc0" "pc1"`},
		// Another's port, for whose tables a does not answer, that nobody judges any more.
		{"delete table inet portcullis.b", "[{open-foreign [pc1]}]", `"pc0"`},
		{"add table inet portcullis.b { flags dormant; }", "[{open-foreign [pc1]}]", `"pc0"`},
		{"flush chain inet portcullis.b input", "[{open-foreign [pc1]}]", `"pc0"`},
		{"insert rule inet portcullis.b prerouting accept", "[{open-foreign [pc1]}]", `"pc0"`},
		{"add rule inet portcullis.b forward accept", "[{open-foreign [pc1]}]", `"pc0"`},
		{`flush chain inet portcullis.b output; add rule inet portcullis.b output oifname pc9 goto output-to-pc`, "[{open-foreign [pc1]}]", `"pc0"`},
		{`flush chain inet portcullis.b output; add rule inet portcullis.b output oifname pc1 accept`, "[{open-foreign [pc1]}]", `"pc0"`},
		{`flush chain inet portcullis.b output; add rule inet portcullis.b output oifname pc1 meta l4proto tcp goto output-to-pc`, "[{open-foreign [pc1]}]", `"pc0"`},
		{"flush chain inet portcullis.b output; delete chain inet portcullis.b output", "[{open-foreign [pc1]}]", `"pc0"`},
		// A table of ours under another name of a port is not one that judges it.
		{"add table inet portcullis.c; add" + set + "{ pc9 }", "[{open-foreign [pc9]}]", `"pc0" "pc1"`},
	} {
		edit(t, gw, c.edit)
		found, err := a.Restore()
		if got := fmt.Sprint(found); got != c.found || err != nil {
			t.Errorf("%s: it tells %s, %v, want %s", c.edit, got, err, c.found)
		}
		if got := inOpen(t, gw); got != c.open {
			t.Errorf("%s: open are %s, want %s", c.edit, got, c.open)
		}
		if _, err := b.Restore(); err != nil { // a drift where its tables or its port were meant
			t.Errorf("%s: %v", c.edit, err)
		}
		for _, k := range []*Kernel{a, b} {
			if found, err := k.Restore(); len(found) > 0 || err != nil {
				t.Errorf("%s: afterwards %s tells %v, %v", c.edit, k.opt.PC, found, err)
			}
		}
		if got := inOpen(t, gw); got != `"pc0" "pc1"` {
			t.Errorf("%s: with both, open are %s", c.edit, got)
		}
	}
	// Its gatewayd is dead, and its tables judge the port: it stays as it is. Without them the static deny has it.
	b.Close()
	if found, err := a.Restore(); len(found) > 0 || err != nil {
		t.Errorf("the other is dead: %v, %v", found, err)
	}
	edit(t, gw, "delete table inet portcullis.b; delete table netdev portcullis-link.b")
	if found, err := a.Restore(); fmt.Sprint(found) != "[{open-foreign [pc1]}]" || err != nil || inOpen(t, gw) != `"pc0"` {
		t.Errorf("the tables of a dead one are gone: %v, %v", found, err)
	}
	// The own tables are gone again: the own port is not opened.
	edit(t, gw, "delete table inet portcullis.a; flush set inet portcullis-deny open")
	if found, err := a.restoreDeny(); len(found) > 0 || !errors.Is(err, errNotPutBack) || inOpen(t, gw) != "" {
		t.Errorf("a port without tables: %v, %v, open are %s", found, err, inOpen(t, gw))
	}
	if found, err := a.Restore(); fmt.Sprint(found) != "[{tables-changed []}]" || err != nil || inOpen(t, gw) != `"pc0"` {
		t.Errorf("with them: %v, %v", found, err)
	}
}

// gatewayds lets several open and shut their ports, look at the set open, move to another port and begin anew, until
// stop is closed, and gives whatever they told.
func gatewayds(t *testing.T, gw *netns.Host, stop <-chan struct{}, ports map[string][]string) func() map[string][]Drift {
	var mu sync.Mutex
	var all sync.WaitGroup
	told := map[string][]Drift{}
	for pc, list := range ports {
		rulesets := map[string][]*ruleset.Ruleset{}
		for _, p := range list {
			for _, to := range []policy.Phase{policy.Attest, policy.Run, policy.Quarantine} {
				rulesets[p] = append(rulesets[p], of(t, pc, p, to, "203.0.113.10:80/tcp"))
			}
		}
		all.Go(func() {
			random := rand.New(rand.NewPCG(3, uint64(pc[0])))
			for n := 0; ; n++ {
				port := list[n%len(list)]
				k, err := Open(Options{PC: pc, Interface: port, NetNS: gw.FD()})
				if err != nil {
					t.Error(err)
					return
				}
				// The socket of the life before is closed when a process that was forked from us meanwhile has begun.
				for err = unix.EPERM; errors.Is(err, unix.EPERM); {
					err = k.Apply(rulesets[port][0])
				}
				for range 12 {
					if errors.Is(err, errUnsettled) {
						err = nil // it is tried again
					}
					if err != nil {
						break
					}
					switch random.IntN(4) {
					case 0:
						err = k.Apply(rulesets[port][random.IntN(3)])
					case 1:
						err = k.SetRun(rulesets[port][random.IntN(3)])
					default:
						var found []Drift
						found, err = k.Restore()
						mu.Lock()
						told[port] = append(told[port], found...)
						mu.Unlock()
					}
				}
				k.Close()
				if err != nil && !errors.Is(err, errUnsettled) {
					t.Errorf("%s at %s: %v", pc, port, err)
					return
				}
				select {
				case <-stop:
					return
				default:
				}
			}
		})
	}
	return func() map[string][]Drift { all.Wait(); return told }
}

// TestInvariant01_OpenIsComparedWithoutFalseAlarm: while gatewayds open and shut, move to other ports and begin
// anew, and all look at the set open, none tells anything. While nft puts elements in and takes them out at random
// meanwhile, what is told is what nft did, and no port of another gatewayd is ever taken for a foreign one.
func TestInvariant01_OpenIsComparedWithoutFalseAlarm(t *testing.T) {
	pc, gw, _ := wire(t)
	for i := range 4 {
		if err := netns.Veth(pc, fmt.Sprint("eth", i+1), gw, fmt.Sprint("pc", i+1)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := gw.Run(context.Background(), "nft", "-D", "port=pc*", "-f", "../../systemd/portcullis-deny-rack.nft"); err != nil {
		t.Fatal(err)
	}
	ports := map[string][]string{"a": {"pc0"}, "b": {"pc1", "pc2"}, "c": {"pc3", "pc4"}}
	watch := open(t, gw, Options{})
	generation := func() uint32 {
		g, err := watch.reader.GetGen()
		if err != nil {
			t.Fatal(err)
		}
		return g.ID
	}
	stop := make(chan struct{})
	told := gatewayds(t, gw, stop, ports)
	for end := generation() + 100; generation() < end && !t.Failed(); {
	}
	close(stop)
	for port, found := range told() {
		if len(found) > 0 {
			t.Errorf("undisturbed, at %s it tells %v", port, found)
		}
	}

	stop = make(chan struct{})
	told = gatewayds(t, gw, stop, ports)
	random := rand.New(rand.NewPCG(5, 6))
	for range 40 {
		x := []string{"x0", "x1", "x2", "*", "pc0"}[random.IntN(5)]
		verb := "add"
		if random.IntN(3) == 0 || x == "pc0" {
			verb = "delete"
		}
		gw.Run(context.Background(), "nft", verb+" element inet portcullis-deny open { "+x+" }") // it may not be there
	}
	close(stop)
	reasons := map[Reason]int{}
	for port, found := range told() {
		for _, d := range found {
			reasons[d.Reason]++
			switch d.Reason {
			case OpenForeign:
				for _, p := range d.Ports {
					if p[0] != 'x' && p != "*" {
						t.Errorf("at %s it tells of %s", port, p)
					}
				}
			case OpenMissing:
				if d.Ports[0] != "pc0" || port != "pc0" {
					t.Errorf("at %s the port %s was missed, which nobody has taken out", port, d.Ports)
				}
			default:
				t.Errorf("at %s it tells %v", port, d)
			}
		}
	}
	if reasons[OpenForeign] == 0 { // what was taken out may be back by the next change of its own gatewayd
		t.Errorf("it told of %v", reasons)
	}
	k := open(t, gw, Options{PC: "a", Interface: "pc0"})
	if err := k.Apply(of(t, "a", "pc0", policy.Idle)); err != nil {
		t.Fatal(err)
	}
	if _, err := k.Restore(); err != nil {
		t.Fatal(err)
	}
	if got := inOpen(t, gw); !regexp.MustCompile(`^"pc0" "pc[12]" "pc[34]"$`).MatchString(got) {
		t.Errorf("in the end open are %s", got)
	}
	t.Logf("told: %v; %d generations", reasons, generation())
}
