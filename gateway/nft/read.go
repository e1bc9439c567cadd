package nft

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"portcullis/gateway/policy"
	"portcullis/gateway/ruleset"
)

// Counters reads every named counter; a name that both tables have is summed.
func (k *Kernel) Counters() (map[string]uint64, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := map[string]uint64{}
	for _, t := range k.ours() {
		objects, err := k.reader.GetNamedObjects(t)
		if err != nil {
			return nil, fmt.Errorf("nft: read counters: %w", err)
		}
		for _, o := range objects {
			n, ok := o.(*nftables.NamedObj)
			if !ok {
				continue
			}
			if c, ok := n.Obj.(*expr.Counter); ok {
				out[n.Name] += c.Packets
			}
		}
	}
	return out, nil
}

// BanLeft tells how long the port is still banned; 0 = it is not.
func (k *Kernel) BanLeft() (time.Duration, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	var left time.Duration
	for _, t := range k.ours() {
		elems, err := k.reader.GetSetElements(&nftables.Set{Table: t, Name: ruleset.BanSet})
		if err != nil {
			return 0, fmt.Errorf("nft: read bans: %w", err)
		}
		for _, e := range elems {
			left = max(left, e.Expires)
		}
	}
	return left, nil
}

// Grants reads the targets that the kernel lets pass in a run, with the time left.
// found is false when there is no table yet.
func (k *Kernel) Grants() (left map[policy.Target]time.Duration, found bool, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	left = map[policy.Target]time.Duration{}
	for _, t := range k.ours() {
		if t.Family != nftables.TableFamilyINet {
			continue
		}
		elems, err := k.reader.GetSetElements(&nftables.Set{Table: t, Name: ruleset.GrantSet})
		if err != nil {
			return nil, false, fmt.Errorf("nft: read grants: %w", err)
		}
		found = true
		for _, e := range elems {
			if g, ok := targetOf(e.Key); ok {
				left[g] = e.Expires
			}
		}
	}
	return left, found, nil
}

func targetOf(key []byte) (policy.Target, bool) {
	if len(key) != 12 {
		return policy.Target{}, false
	}
	t := policy.Target{Protocol: "udp", Address: netip.AddrFrom4([4]byte(key[:4])), Port: binary.BigEndian.Uint16(key[8:])}
	if key[4] == 6 {
		t.Protocol = "tcp"
	}
	return t, bytes.Equal(key, ruleset.TargetKey(t))
}

// ours lists the tables that exist.
func (k *Kernel) ours() []*nftables.Table {
	var out []*nftables.Table
	for _, t := range []*nftables.Table{
		{Family: nftables.TableFamilyINet, Name: ruleset.IPTableOf(k.opt.PC)},
		{Family: nftables.TableFamilyNetdev, Name: ruleset.LinkTableOf(k.opt.PC)},
	} {
		if got, err := k.reader.ListTableOfFamily(t.Name, t.Family); err == nil {
			out = append(out, got)
		}
	}
	return out
}

// SetRun begins the time of the run anew without touching any rule: the kernel
// ends it when nobody renews. Where rs has no run it ends at once, and is read back.
func (k *Kernel) SetRun(rs *ruleset.Ruleset) error { return k.refill(rs, ruleset.RunSet) }

// SetGrants replaces the granted targets in one transaction.
func (k *Kernel) SetGrants(rs *ruleset.Ruleset) error { return k.refill(rs, ruleset.GrantSet) }

func (k *Kernel) refill(rs *ruleset.Ruleset, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	own := rs.Table("inet", ruleset.IPTableOf(k.opt.PC))
	if own == nil {
		return fmt.Errorf("nft: set %s: %w", name, errOther)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: own.Name}
	var emptied *nftables.Set
	for _, s := range own.Sets {
		if s.Name != name {
			continue
		}
		set, err := setOf(t, s)
		if err != nil {
			return err
		}
		if len(s.Elements) == 0 {
			emptied = set
		}
		// Delete and add: kernels before 6.12 keep the old time of a key that is added again.
		k.owner.FlushSet(set)
		if err := k.owner.SetAddElements(set, elements(s.Elements)); err != nil {
			return fmt.Errorf("nft: set %s: %w", name, err)
		}
	}
	if err := k.owner.Flush(); err != nil {
		return fmt.Errorf("nft: set %s: %w", name, err)
	}
	k.want = rs
	if emptied == nil {
		return nil
	}
	left, err := k.reader.GetSetElements(emptied)
	if err == nil && len(left) > 0 {
		err = fmt.Errorf("%d elements are left", len(left))
	}
	if err != nil {
		return fmt.Errorf("nft: set %s: read back: %w", name, err)
	}
	return nil
}
