package nft

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"os"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"portcullis/gateway/ruleset"
)

// Editor is the process that made a generation of the ruleset.
type Editor struct {
	PID  uint32
	Comm string
}

// Reason tells what somebody has changed; the event drift has it.
type Reason string

// Reasons.
const (
	TablesChanged Reason = "tables-changed" // our own tables
	DenyChanged   Reason = "deny-changed"   // the static deny of a rack is gone, is not as its file has it, or is of other names
	OpenMissing   Reason = "open-missing"   // our port was taken out of the set open of the static deny
	OpenForeign   Reason = "open-foreign"   // a port was put into it that no gatewayd judges
)

// Drift is one thing that somebody has changed.
type Drift struct {
	Reason Reason
	Ports  []string // of the set open; "*" = an element for all of them
}

// Restore compares what the kernel shows of our tables with what it showed after
// our own last transaction. When somebody changed it, the ruleset is applied again; then
// the static deny of a rack is put back where it is gone, and its set open put right. Read is
// what the kernel has told of since it was last found to be right, see heard.
func (k *Kernel) Restore() (found []Drift, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.want == nil {
		return nil, nil
	}
	if err := k.hear(); err != nil {
		return nil, err
	}
	if k.heard.own > 0 {
		found, err = k.restoreOwn()
		k.heard.own = due(k.heard.own, found, err)
	}
	deny, failed := k.restoreDeny()
	return append(found, deny...), errors.Join(err, failed)
}

func (k *Kernel) restoreOwn() ([]Drift, error) {
	now, err := k.look()
	if err == nil && now != k.digest {
		now, err = k.snapshot()
	}
	if err != nil || now == k.digest {
		return nil, err
	}
	found := []Drift{{Reason: TablesChanged}}
	if err := k.apply(k.want, k.missed == nil); err != nil {
		return found, err
	}
	return found, k.remember()
}

func (k *Kernel) remember() error {
	if err := k.hear(); err != nil { // our own transaction, which snapshot reads
		return err
	}
	d, err := k.snapshot()
	if err != nil {
		return err
	}
	k.digest, k.heard.own = d, 0
	return nil
}

// steadyTries bounds how often something is read again since somebody changed a ruleset meanwhile.
const steadyTries = 64

// errUnsettled: there was no moment without a change. It is tried again.
var errUnsettled = errors.New("nft: the rulesets cannot be read: somebody changes them all the time")

// steady reads within one generation of the rulesets and gives that. A list that is read while somebody
// changes anything, be it not ours, may lack entries or have them twice.
func (k *Kernel) steady(read func() error) (generation uint32, err error) {
	for range steadyTries {
		if err := k.settled(); err != nil {
			return 0, fmt.Errorf("nft: wait for a change to end: %w", err)
		}
		before, err := k.generation()
		if err != nil {
			return 0, err
		}
		failed := read()
		after, err := k.generation()
		if err != nil {
			return 0, err
		}
		if before == after {
			return after, failed
		}
	}
	return 0, errUnsettled
}

// settled waits until no change is under way: the kernel counts the generation before it takes the old rules out.
// An empty transaction changes nothing and waits for those before it.
func (k *Kernel) settled() error {
	var batch []netlink.Message
	for _, t := range []netlink.HeaderType{unix.NFNL_MSG_BATCH_BEGIN, unix.NFNL_MSG_BATCH_END} {
		batch = append(batch, netlink.Message{Header: netlink.Header{Type: t, Flags: netlink.Request}, Data: []byte{0, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}})
	}
	_, err := k.dump.SendMessages(batch)
	return err
}

// snapshot looks until it has seen the same twice in turn. A transaction that the kernel refuses half-way, be it
// not ours, counts no generation, and a list that is read while it is taken back may lack entries.
func (k *Kernel) snapshot() (digest [32]byte, err error) {
	before, err := k.look()
	for range steadyTries {
		if err != nil {
			return digest, err
		}
		if digest, err = k.look(); digest == before {
			return digest, err
		}
		before = digest
	}
	return digest, errors.Join(err, errUnsettled)
}

// look hashes tables, chains, rules and sets (not their elements) as the kernel
// lists them, without the handles, which change at every refill.
func (k *Kernel) look() (digest [32]byte, err error) {
	_, err = k.steady(func() (err error) { digest, err = k.read(); return err })
	return digest, err
}

func (k *Kernel) read() ([32]byte, error) {
	h := sha256.New()
	for _, t := range []struct {
		family nftables.TableFamily
		name   string
	}{{nftables.TableFamilyINet, ruleset.IPTableOf(k.opt.PC)}, {nftables.TableFamilyNetdev, ruleset.LinkTableOf(k.opt.PC)}} {
		name := append([]byte(t.name), 0)
		for _, list := range []struct {
			get   uint16
			table uint16   // attribute that names the table, in request and answer
			skip  []uint16 // attributes that say nothing about the rules
		}{
			{unix.NFT_MSG_GETTABLE, unix.NFTA_TABLE_NAME, []uint16{nftaTableHandle, nftaTableOwner}},
			{unix.NFT_MSG_GETCHAIN, unix.NFTA_CHAIN_TABLE, []uint16{unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_COUNTERS, nftaChainID}},
			{unix.NFT_MSG_GETRULE, unix.NFTA_RULE_TABLE, []uint16{unix.NFTA_RULE_HANDLE, unix.NFTA_RULE_POSITION}},
			{unix.NFT_MSG_GETSET, unix.NFTA_SET_TABLE, []uint16{nftaSetHandle, unix.NFTA_SET_ID, nftaSetCount}},
		} {
			if err := dumpInto(h, k.dump, t.family, list.get, list.table, name, list.skip); err != nil {
				return [32]byte{}, err
			}
		}
	}
	return [32]byte(h.Sum(nil)), nil
}

// Attributes that golang.org/x/sys does not name, from linux/netfilter/nf_tables.h.
const (
	nftaTableHandle = 4
	nftaTableOwner  = 7
	nftaChainID     = 11
	nftaSetHandle   = 16
	nftaSetCount    = 20
)

func dumpInto(h hash.Hash, c *netlink.Conn, family nftables.TableFamily, get, tableAttr uint16, name []byte, skip []uint16) error {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: tableAttr, Data: name}})
	if err != nil {
		return err
	}
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | get), Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(family), unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("nft: read back: %w", err)
	}
	skipped := map[uint16]bool{}
	for _, s := range skip {
		skipped[s] = true
	}
	for _, m := range msgs {
		if len(m.Data) < 4 {
			continue
		}
		list, err := netlink.UnmarshalAttributes(m.Data[4:])
		if err != nil {
			return fmt.Errorf("nft: read back: %w", err)
		}
		mine := false
		for _, a := range list {
			mine = mine || a.Type&^unix.NLA_F_NESTED == tableAttr && string(a.Data) == string(name)
		}
		if !mine {
			continue
		}
		binary.Write(h, binary.BigEndian, get)
		for _, a := range list {
			if t := a.Type &^ uint16(unix.NLA_F_NESTED); !skipped[t] {
				binary.Write(h, binary.BigEndian, [2]uint32{uint32(t), uint32(len(a.Data))})
				h.Write(a.Data)
			}
		}
	}
	return nil
}

// Watch calls changed once when it listens (for what happened before) and then for the
// generations of any ruleset that other processes made, until ctx ends: for all at once that came while it was
// called. Named is the first of those that made something due, see heard. A burst beyond the socket's buffer is
// reported as one change by an unknown editor.
func (k *Kernel) Watch(ctx context.Context, changed func(Editor)) error {
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: k.opt.NetNS})
	if err != nil {
		return fmt.Errorf("nft: watch: %w", err)
	}
	defer c.Close()
	if err := c.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		return fmt.Errorf("nft: watch: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { c.Close() })
	defer stop()
	waiting := newNotices()
	ended := make(chan error, 1)
	go func() {
		defer close(waiting.told)
		ended <- k.listen(ctx, c, waiting.add)
	}()
	waiting.each(ctx, changed)
	return <-ended
}

// listen tells of each generation that another process made, and of messages that are lost.
func (k *Kernel) listen(ctx context.Context, c *netlink.Conn, tell func(e Editor, weight int)) error {
	weight := 0 // of the messages that belong to the next generation
	for {
		msgs, err := c.Receive()
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, unix.ENOBUFS):
			tell(Editor{}, 1) // not named is then who only made what is nothing to us
			weight = 0
			continue
		case err != nil:
			return fmt.Errorf("nft: watch: %w", err)
		}
		for _, m := range msgs {
			if m.Header.Type != unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN {
				weight = max(weight, k.about(uint16(m.Header.Type), m.Data).weight())
				continue
			}
			if e := editorOf(m.Data); !ourThread(e.PID) {
				tell(e, weight)
			}
			weight = 0
		}
	}
}

// notices are those of generations that nobody has looked at.
type notices struct {
	told   chan struct{} // has one while there are some
	mu     sync.Mutex
	some   bool
	editor Editor
	weight int
}

// newNotices has one of nobody: what happened before is looked at, too.
func newNotices() *notices {
	n := &notices{told: make(chan struct{}, 1)}
	n.told <- struct{}{}
	return n
}

// each calls changed for all that wait, at once, until nobody tells of more or ctx ends.
func (n *notices) each(ctx context.Context, changed func(Editor)) {
	for range n.told {
		if e := n.take(); ctx.Err() == nil {
			changed(e)
		}
	}
}

func (n *notices) add(e Editor, weight int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.some || weight > n.weight {
		n.some, n.editor, n.weight = true, e, weight
	}
	select {
	case n.told <- struct{}{}:
	default:
	}
}

// take gives who is named; nobody where there are no notices.
func (n *notices) take() Editor {
	n.mu.Lock()
	defer n.mu.Unlock()
	e := n.editor
	n.some, n.editor, n.weight = false, Editor{}, 0
	return e
}

// ourThread: the kernel names the thread that made the change.
func ourThread(tid uint32) bool {
	_, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid))
	return tid != 0 && err == nil
}

func editorOf(data []byte) Editor {
	var e Editor
	if len(data) < 4 {
		return e
	}
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return e
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_GEN_PROC_PID:
			e.PID = ad.Uint32()
		case unix.NFTA_GEN_PROC_NAME:
			e.Comm = ad.String()
		}
	}
	return e
}
