// Package nft carries a ruleset into the kernel over netlink, keeps it there,
// and reads it back. Only gatewayd may call it: it owns the tables.
//
// Where the kernel knows it (6.9), the tables are owned by our socket and
// persistent: no other process can edit them, and they outlive our death. A
// Kernel made later adopts them as they are. Base chains are never deleted, since
// replacing one lets packets through; every swap is one transaction that empties and refills.
package nft

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"portcullis/gateway/ruleset"
)

// Options of Open.
type Options struct {
	NetNS     int    // file descriptor of a network namespace; 0 = the caller's
	Unowned   bool   // leave the owner flag out even where the kernel has it
	PC        string // the name that our tables have behind theirs; "" where the Pi has one port
	Interface string // the port, for the static deny of a rack
}

// Kernel is the connection that owns the tables.
type Kernel struct {
	mu     sync.Mutex
	opt    Options
	owner  *nftables.Conn // lasting: the owner of the tables is this socket
	reader *nftables.Conn
	dump   *netlink.Conn // raw read-back; kept open, since closing one waits for the kernel's clean-up
	heard  *heard
	flags  nftables.TableFlags
	want   *ruleset.Ruleset
	digest [32]byte  // of what the kernel showed after our last transaction
	missed error     // why the link table is absent, nil when it is there
	deny   *backstop // of a rack, once Apply has seen it
}

// Open connects. Nothing is changed before Apply.
func Open(opt Options) (*Kernel, error) {
	owner, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(opt.NetNS))
	if err != nil {
		return nil, fmt.Errorf("nft: connect: %w", err)
	}
	reader, err := nftables.New(nftables.AsLasting(), nftables.WithNetNSFd(opt.NetNS))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nft: connect: %w", err), owner.CloseLasting())
	}
	dump, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: opt.NetNS})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nft: connect: %w", err), owner.CloseLasting(), reader.CloseLasting())
	}
	heard, err := listen(opt.NetNS)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nft: connect: %w", err), owner.CloseLasting(), reader.CloseLasting(), dump.Close())
	}
	k := &Kernel{opt: opt, owner: owner, reader: reader, dump: dump, heard: heard, flags: nftables.TableFlagOwner | nftables.TableFlagPersist}
	if opt.Unowned {
		k.flags = 0
	}
	return k, nil
}

// Close lets go of the tables; they stay in the kernel.
func (k *Kernel) Close() error {
	return errors.Join(k.owner.CloseLasting(), k.reader.CloseLasting(), k.dump.Close(), k.heard.conn.Close())
}

// Owned tells whether the tables are protected from other processes.
func (k *Kernel) Owned() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.flags != 0
}

// Apply makes the kernel enforce rs, in one transaction, and returns when it
// does. Elements of kept sets (bans) and the counters stay. A port
// that does not exist yet gets its link table at the next Apply; LinkBound tells. One port of
// several needs the static deny of a rack, without which nobody denies what belongs to no port: where
// the first Apply does not find it, its own port is shut by its own tables, and ErrNoBackstop is returned.
func (k *Kernel) Apply(rs *ruleset.Ruleset) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	err := k.apply(rs, true)
	k.missed = nil
	if errors.Is(err, unix.ENOENT) {
		// Before Linux 6.16 a chain cannot wait for its device. The IP tables can.
		k.missed = err
		err = k.apply(rs, false)
	}
	if err != nil {
		return err
	}
	if k.opt.PC != "" && k.deny == nil {
		if err := k.keepDeny(); err != nil {
			return err
		}
	}
	k.want = rs
	return k.remember()
}

// LinkBound is nil when the link table sits on the port, else the reason why not.
func (k *Kernel) LinkBound() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.missed
}

func (k *Kernel) apply(rs *ruleset.Ruleset, link bool) error {
	err := k.transact(rs, link)
	if k.flags != 0 && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EINVAL)) && !k.anyKept() {
		// The kernel is older than the persist flag; without it an owned table would die with us and open the door.
		flags := k.flags
		k.flags = 0
		if err = k.transact(rs, link); err != nil {
			k.flags = flags // the flags were not what it refused
		}
	}
	return err
}

// transactTries bounds how often a transaction is made again that the kernel refused because of what was
// not yet, or no longer, as it had been read.
const transactTries = 4

// transact makes one transaction of rs. Our tables may lose their owner between the moment when they are read and
// that one, where the process of before has just ended: the kernel refuses new base chains then, and the next
// try adopts the tables first.
func (k *Kernel) transact(rs *ruleset.Ruleset, link bool) (err error) {
	for range transactTries {
		if err = k.transactOnce(rs, link); k.flags == 0 || !errors.Is(err, unix.EINVAL) {
			break
		}
	}
	return err
}

func (k *Kernel) transactOnce(rs *ruleset.Ruleset, link bool) error {
	if err := k.checkNames(rs); err != nil {
		return err
	}
	live, err := k.inventory()
	if err != nil {
		return err
	}
	adopted, err := k.adopt(live)
	if err == nil && adopted {
		live, err = k.inventory() // somebody may have changed them until they were ours
	}
	if err != nil {
		return err
	}
	if err := k.queueDeny(live); err != nil {
		return err
	}
	for _, t := range rs.Tables {
		if t.Family == "netdev" && !link {
			continue
		}
		if err := k.queueTable(t, live); err != nil {
			k.owner.Flush() // an incomplete queue is thrown away by its own error
			return err
		}
	}
	if err := k.owner.Flush(); err != nil {
		return fmt.Errorf("nft: transaction: %w", err)
	}
	return nil
}

// adopt makes us the owner of tables that a former life of ours left, in a transaction that changes
// nothing else: the kernel refuses new base chains, which another port needs, in the one that takes a table over.
func (k *Kernel) adopt(live *inventory) (adopted bool, err error) {
	if k.flags == 0 {
		return false, nil
	}
	for _, t := range live.tables {
		if t.table.Name == ruleset.DenyTable {
			continue // nobody's, and each gatewayd of a rack adds to it
		}
		if t.table.Flags&(nftables.TableFlagOwner|nftables.TableFlagPersist) == nftables.TableFlagPersist {
			k.owner.AddTable(&nftables.Table{Family: t.table.Family, Name: t.table.Name, Flags: k.flags})
			adopted = true
		}
	}
	if !adopted {
		return false, nil
	}
	if err := k.owner.Flush(); err != nil {
		return false, fmt.Errorf("nft: take over the tables of before: %w", err)
	}
	return true, nil
}

// queueTable empties and refills one table, leaving its base chains and kept sets in place.
func (k *Kernel) queueTable(want *ruleset.Table, live *inventory) error {
	fam, err := family(want.Family)
	if err != nil {
		return err
	}
	t := k.owner.AddTable(&nftables.Table{Family: fam, Name: want.Name, Flags: k.flags})
	have := live.tables[key(want.Family, want.Name)]
	if have != nil {
		k.owner.FlushTable(t)
	}
	for _, name := range want.Counters {
		if have == nil || !have.counters[name] {
			k.owner.AddObj(&nftables.NamedObj{Table: t, Name: name, Type: nftables.ObjTypeCounter, Obj: &expr.Counter{}})
		}
	}
	if err := k.queueSets(t, want, have); err != nil {
		return err
	}
	return k.queueChains(t, want, have)
}

func (k *Kernel) queueSets(t *nftables.Table, want *ruleset.Table, have *liveTable) error {
	wanted := map[string]bool{}
	for _, s := range want.Sets {
		wanted[s.Name] = true
		set, err := setOf(t, s)
		if err != nil {
			return err
		}
		var old *nftables.Set
		if have != nil {
			old = have.sets[s.Name]
		}
		if old != nil && !sameSet(old, set) {
			k.owner.DelSet(old)
			old = nil
		}
		switch {
		case old == nil:
			if err := k.owner.AddSet(set, nil); err != nil {
				return fmt.Errorf("nft: set %s: %w", s.Name, err)
			}
		case !s.Kept:
			k.owner.FlushSet(set)
		}
		if err := k.owner.SetAddElements(set, elements(s.Elements)); err != nil {
			return fmt.Errorf("nft: set %s: %w", s.Name, err)
		}
	}
	if have != nil {
		for name, s := range have.sets {
			if !wanted[name] {
				k.owner.DelSet(s)
			}
		}
	}
	return nil
}

func sameSet(a, b *nftables.Set) bool {
	return a.Size == b.Size && a.Dynamic == b.Dynamic && a.HasTimeout == b.HasTimeout && a.KeyType.Bytes == b.KeyType.Bytes && a.IsMap == b.IsMap
}

func elements(in []ruleset.Element) []nftables.SetElement {
	var out []nftables.SetElement
	for _, e := range in {
		out = append(out, nftables.SetElement{Key: e.Key, Timeout: max(e.Timeout, time.Millisecond)})
	}
	return out
}

func (k *Kernel) queueChains(t *nftables.Table, want *ruleset.Table, have *liveTable) error {
	wanted := map[string]bool{}
	for _, c := range want.Chains {
		wanted[c.Name] = true
		chain, err := baseChain(t, c)
		if err != nil {
			return err
		}
		if have == nil || have.chains[c.Name] == nil {
			k.owner.AddChain(chain)
		}
	}
	if have != nil {
		for name, c := range have.chains {
			if !wanted[name] {
				k.owner.DelChain(c)
			}
		}
	}
	for _, c := range want.Chains {
		for _, r := range c.Rules {
			exprs, err := compile(r)
			if err != nil {
				return err
			}
			k.owner.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Table: t, Name: c.Name}, Exprs: exprs})
		}
	}
	return nil
}

func native32(v uint32) []byte { return nativeOrder.AppendUint32(nil, v) }
