package nft

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
	"portcullis/internal/netns"
)

// quiet has k look until nothing is due.
func quiet(t *testing.T, list ...*Kernel) {
	t.Helper()
	for _, k := range list {
		k.heard.all = time.Now() // however slowly the test goes
		for range 3 * dueLooks {
			if found, err := k.Restore(); len(found) > 0 || err != nil {
				t.Fatalf("%s tells %v, %v", k.opt.PC, found, err)
			}
		}
		if k.due() {
			t.Fatalf("%s: there is always something due: %+v", k.opt.PC, k.heard)
		}
	}
}

func (k *Kernel) due() bool {
	for _, j := range k.heard.judges {
		if j.due > 0 {
			return true
		}
	}
	return k.heard.own+k.heard.deny+k.heard.open > 0
}

// TestInvariant01_NothingIsMissedByWhoHasNothingToLookAt: each kind of change is told at the first look behind it, also by
// a gatewayd that has found everything as it should be so often that it reads nothing.
func TestInvariant01_NothingIsMissedByWhoHasNothingToLookAt(t *testing.T) {
	gw := twoPorts(t)
	a, b := open(t, gw, Options{PC: "a", Interface: "pc0", Unowned: true}), open(t, gw, Options{PC: "b", Interface: "pc1", Unowned: true})
	for _, err := range []error{a.Apply(of(t, "a", "pc0", policy.Attest)), b.Apply(of(t, "b", "pc1", policy.Attest))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	const own, deny, open = "[{tables-changed []}]", "[{deny-changed []}]", " element inet portcullis-deny open "
	for change, want := range map[string]string{
		"insert rule inet portcullis.a from-pc accept":                                                          own,
		"add chain inet portcullis.a hole { type filter hook prerouting priority -400; }":                       own,
		"add chain inet portcullis.a input { policy drop; }":                                                    own,
		"add set inet portcullis.a mine { type ifname; }":                                                       own,
		"add table inet portcullis.a { flags dormant; }":                                                        own,
		"insert rule netdev portcullis-link.a link-ip accept":                                                   own,
		"delete table netdev portcullis-link.a":                                                                 own,
		"insert rule inet portcullis-deny forward accept":                                                       deny,
		"add chain inet portcullis-deny mine":                                                                   deny,
		"add chain inet portcullis-deny output { policy drop; }":                                                deny,
		"add set inet portcullis-deny mine { type ifname; }":                                                    deny,
		"add table inet portcullis-deny { flags dormant; }":                                                     deny,
		"flush chain inet portcullis-deny input":                                                                deny,
		"add" + open + "{ pc9 }":                                                                                "[{open-foreign [pc9]}]",
		"add" + open + "{ * }":                                                                                  "[{open-foreign [*]}]",
		"delete" + open + "{ pc0 }":                                                                             "[{open-missing [pc0]}]",
		"delete table inet portcullis.b":                                                                        "[{open-foreign [pc1]}]",
		"delete table inet portcullis.b; add table inet portcullis.b":                                           "[{open-foreign [pc1]}]",
		"add table inet portcullis.b { flags dormant; }":                                                        "[{open-foreign [pc1]}]",
		"insert rule inet portcullis.b input accept":                                                            "[{open-foreign [pc1]}]",
		"flush chain inet portcullis.b output; delete chain inet portcullis.b output":                           "[{open-foreign [pc1]}]",
		"flush chain inet portcullis.b output; add rule inet portcullis.b output oifname pc9 goto output-to-pc": "[{open-foreign [pc1]}]",
	} {
		quiet(t, a)
		edit(t, gw, change)
		if found, err := a.Restore(); fmt.Sprint(found) != want || err != nil {
			t.Errorf("%s: it tells %v, %v, want %s", change, found, err, want)
		}
		if _, err := b.Restore(); err != nil { // where its own were meant
			t.Errorf("%s: %v", change, err)
		}
	}
	if found, err := a.Restore(); len(found) > 0 || err != nil || inOpen(t, gw) != `"pc0" "pc1"` {
		t.Errorf("in the end it tells %v, %v, and open are %s", found, err, inOpen(t, gw))
	}
}

// A gatewayd whose port's run is renewed, and that grants and bans, has no other read anything again.
func TestRenewalMakesNothingDue(t *testing.T) {
	_, list := ports(t, 3, false)
	quiet(t, list...)
	run := of(t, "n0", "pc0", policy.Run, "203.0.113.10:80/tcp")
	for _, change := range []func(*ruleset.Ruleset) error{list[0].SetRun, list[0].SetGrants} {
		for range 3 {
			if err := change(run); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, k := range list {
		if err := k.hear(); err != nil || k.due() {
			t.Errorf("%s: %v, due is %+v", k.opt.PC, err, k.heard)
		}
	}
	// Its rules are something else.
	if err := list[0].Apply(run); err != nil {
		t.Fatal(err)
	}
	if err := list[1].hear(); err != nil || list[1].heard.open != dueLooks || list[1].heard.own+list[1].heard.deny != 0 || len(list[1].heard.judges) != 2 {
		t.Errorf("%v, due is %+v", err, list[1].heard)
	}
}

// TestInvariant01_TablesOfAnotherOwnerAreReadAgain: a gatewayd ends, and its table is somebody else's: of the same name,
// be it adopted as it is, changed while it was nobody's, or made anew.
func TestInvariant01_TablesOfAnotherOwnerAreReadAgain(t *testing.T) {
	gw, all := ports(t, 3, false)
	a, b := all[0], all[1]
	if !a.Owned() {
		t.Fatal("this kernel knows no tables that outlive their owner: Linux 6.9 or later is needed")
	}
	tells := func(when, want, open string) {
		t.Helper()
		found, err := a.Restore()
		if fmt.Sprint(found) != want || err != nil || inOpen(t, gw) != open {
			t.Errorf("%s: it tells %v, %v, and open are %s", when, found, err, inOpen(t, gw))
		}
		quiet(t, a)
	}
	again := func(port string) *Kernel {
		t.Helper()
		k := openAgain(t, gw, Options{PC: "n1", Interface: port}, of(t, "n1", port, policy.Attest))
		return k
	}
	quiet(t, a)
	b.Close()
	tells("it is dead", "[]", `"pc0" "pc1" "pc2"`)
	b = again("pc1")
	tells("it is back", "[]", `"pc0" "pc1" "pc2"`)
	b.Close()
	b = again("pc7")
	tells("it is back, on another port", "[]", `"pc0" "pc2" "pc7"`)
	b.Close()
	edit(t, gw, "insert rule inet portcullis.n1 input accept")
	tells("while it was dead its table was changed", "[{open-foreign [pc7]}]", `"pc0" "pc2"`)
	b = again("pc7")
	tells("it is back again", "[]", `"pc0" "pc2" "pc7"`)
	b.Close()
	edit(t, gw, "delete table inet portcullis.n1; delete table netdev portcullis-link.n1; add table inet portcullis.n1")
	tells("there is another table of the name", "[{open-foreign [pc7]}]", `"pc0" "pc2"`)

	// A table goes with its owner, without a word, where it is not persistent.
	edit(t, gw, "delete table inet portcullis.n1")
	c := openOwner(t, gw, of(t, "n1", "pc7", policy.Attest))
	edit(t, gw, "add element inet portcullis-deny open { pc7 }")
	tells("a table judges the port", "[]", `"pc0" "pc2" "pc7"`)
	if err := c.CloseLasting(); err != nil {
		t.Fatal(err)
	}
	for tries := 0; strings.Contains(list(t, gw), "portcullis.n1"); tries++ {
		if tries > 1000 {
			t.Fatal("the table outlives its owner")
		}
		time.Sleep(time.Millisecond)
	}
	tells("that table has gone with its owner", "[{open-foreign [pc7]}]", `"pc0" "pc2"`)
}

// openAgain begins anew with the tables of a former life.
func openAgain(t *testing.T, gw *netns.Host, opt Options, rs *ruleset.Ruleset) *Kernel {
	t.Helper()
	k := open(t, gw, opt)
	if err := k.Apply(rs); err != nil {
		t.Fatal(err)
	}
	return k
}

// openOwner makes the inet table of a ruleset one that ends with its owner.
func openOwner(t *testing.T, gw *netns.Host, rs *ruleset.Ruleset) *nftables.Conn {
	t.Helper()
	k := open(t, gw, Options{PC: "n1", Interface: "pc7"})
	k.flags = nftables.TableFlagOwner
	live, err := k.inventory()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range rs.Tables {
		if table.Family == "inet" {
			err = k.queueTable(table, live)
		}
	}
	if err == nil {
		err = k.owner.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return k.owner
}

// Whatever the kernel could not tell, and whatever may have been told wrongly, is read again as a whole.
func TestInvariant01_WhatWasNotHeardIsLookedAt(t *testing.T) {
	gw, list := ports(t, 2, true)
	a, b := list[0], list[1]
	const deleted, changed = "delete table inet portcullis.n1", "insert rule inet portcullis.n1 input accept"
	tells := func(when string) {
		t.Helper()
		if found, err := a.Restore(); fmt.Sprint(found) != "[{open-foreign [pc1]}]" || err != nil {
			t.Errorf("%s: it tells %v, %v", when, found, err)
		}
		if _, err := b.Restore(); err != nil {
			t.Fatal(err)
		}
		quiet(t, a)
	}
	quiet(t, a)

	// The socket overflows before, behind and at the change.
	if err := a.heard.conn.SetReadBuffer(1); err != nil {
		t.Fatal(err)
	}
	flood := func() {
		for range 4 {
			if err := b.Apply(of(t, "n1", "pc1", policy.Attest)); err != nil {
				t.Fatal(err)
			}
		}
	}
	flood()
	edit(t, gw, changed)
	tells("its socket was full before")
	edit(t, gw, changed)
	flooded := "add table inet mine"
	for i := range 200 {
		flooded += fmt.Sprintf("; add chain inet mine c%d", i)
	}
	edit(t, gw, flooded+"; delete table inet mine")
	tells("its socket was full behind")
	if a.take() != true {
		t.Error("an empty socket is not whole")
	}
	flood()
	if a.take() {
		t.Fatal("the socket did not overflow")
	}

	// A generation of which nothing was told.
	if err := a.heard.conn.SetReadBuffer(1 << 20); err != nil {
		t.Fatal(err)
	}
	a.heard.everything()
	quiet(t, a)
	if err := a.heard.conn.LeaveGroup(unix.NFNLGRP_NFTABLES); err != nil {
		t.Fatal(err)
	}
	edit(t, gw, changed)
	tells("it was not told")
	edit(t, gw, changed)
	if err := a.heard.conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		t.Fatal(err)
	}
	edit(t, gw, "add table inet mine")
	tells("it was told of the next one only")

	// What was read wrongly, twice in the same way, is found after a while.
	edit(t, gw, deleted)
	if err := a.hear(); err != nil {
		t.Fatal(err)
	}
	a.heard.own, a.heard.deny, a.heard.open = 0, 0, 0
	a.heard.judges["portcullis.n1"] = judgement{port: ruleset.InterfaceKey("pc1")}
	edit(t, gw, "add table inet portcullis.n1")
	a.take()
	a.heard.own, a.heard.deny, a.heard.open = 0, 0, 0
	a.heard.judges["portcullis.n1"] = judgement{port: ruleset.InterfaceKey("pc1")}
	quiet(t, a)
	a.heard.all = a.heard.all.Add(-lookAtAll)
	tells("it was read wrongly")
}

// What comes while the caller is busy is one call more, however much it is; and nothing is called behind the end.
func TestWatchLooksOnceAtWhatWaits(t *testing.T) {
	n := newNotices()
	called, on := make(chan Editor), make(chan struct{})
	go func() {
		defer close(called)
		n.each(t.Context(), func(e Editor) { called <- e; <-on })
	}()
	if e := <-called; e != (Editor{}) {
		t.Errorf("at first %+v is named", e)
	}
	for i := range uint32(5) {
		n.add(Editor{PID: 1 + i}, 0)
	}
	on <- struct{}{}
	if e := <-called; e.PID != 1 {
		t.Errorf("%+v is named", e)
	}
	close(n.told)
	close(on)
	for e := range called {
		t.Errorf("%+v is called once more", e)
	}

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	n = newNotices()
	close(n.told)
	n.each(ended, func(Editor) { t.Error("it is called behind the end") })
}

// Named is whoever changed what matters, the first of several.
func TestWatchNamesWhoMatters(t *testing.T) {
	n := notices{told: make(chan struct{}, 1)}
	for _, c := range []struct {
		pid    uint32
		weight int
		want   uint32
	}{{1, 0, 1}, {2, 0, 1}, {3, 1, 3}, {4, 2, 4}, {5, 1, 4}, {6, 2, 4}} {
		n.add(Editor{PID: c.pid}, c.weight)
		if n.editor.PID != c.want {
			t.Errorf("with %d named is %d", c.pid, n.editor.PID)
		}
	}
	if len(n.told) != 1 {
		t.Error("nobody is told")
	}
	if n.take().PID != 4 || n.take() != (Editor{}) {
		t.Error("what was taken is there still")
	}
}

// Generations follow each other, over the end of their numbers, too.
func TestGenerationsFollow(t *testing.T) {
	h := &heard{}
	for _, c := range []struct {
		generation uint32
		follows    bool
	}{{7, true}, {8, true}, {10, false}, {11, true}, {11, false}, {10, false}, {1<<32 - 1, false}, {1, true}, {2, true}} {
		if h.follows(c.generation) != c.follows {
			t.Errorf("%d follows is %t", c.generation, !c.follows)
		}
	}
}

// FuzzNote: whatever comes behind it, what a message says is taken, or all that was told counts as lost.
func FuzzNote(f *testing.F) {
	message := func(kind uint16, family byte, attrs ...byte) []byte {
		n := 20 + len(attrs)
		return append([]byte{byte(n), byte(n >> 8), 0, 0, byte(kind), byte(kind >> 8), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, family, 0, 0, 0}, attrs...)
	}
	const nft = unix.NFNL_SUBSYS_NFTABLES << 8
	f.Add(message(nft|unix.NFT_MSG_NEWGEN, 0, 8, 0, 1, 0, 0, 0, 0, 1))
	changed := message(nft|unix.NFT_MSG_NEWRULE, 1, append([]byte{17, 0, 1, 0}, "portcullis.a\x00\x00\x00\x00"...)...)
	f.Add(changed)
	f.Add(message(nft|unix.NFT_MSG_DELTABLE, 1, append([]byte{20, 0, 1, 0}, "portcullis-deny\x00"...)...))
	f.Add(message(nft|unix.NFT_MSG_DELSETELEM, 5, 4, 0, 1, 0))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		k := &Kernel{opt: Options{PC: "a"}, heard: &heard{judges: map[string]judgement{"portcullis.a": {}}}}
		whole := k.note(append(slices.Clone(changed), packet...))
		if _, trusted := k.heard.judges["portcullis.a"]; whole && (trusted || k.heard.own == 0 || k.heard.open == 0) {
			t.Errorf("our table has changed, and due is %+v", k.heard)
		}
	})
}
