package nft

import (
	"bytes"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"

	"portcullis/gateway/ruleset"
)

// denyChains are the chains of the static deny. It is whole when each of them has a rule.
var denyChains = []string{"prerouting", "input", "forward", "output"}

// backstop is the static deny of a rack as it was when it was last seen whole. It is nobody's
// table, so that any process may take it away (nft flush ruleset, which the usual
// nftables.conf begins with), and with it what closes the trunk and the ports of nobody.
type backstop struct {
	size   uint32 // of the set open
	chains []*nftables.Chain
	rules  []*nftables.Rule
}

// seeDeny takes a copy of the static deny; nil where it is not whole.
func (k *Kernel) seeDeny(live *inventory) (*backstop, error) {
	deny := live.tables[key("inet", ruleset.DenyTable)]
	if deny == nil || deny.sets[ruleset.OpenSet] == nil {
		return nil, nil
	}
	seen := &backstop{size: deny.sets[ruleset.OpenSet].Size}
	for _, name := range denyChains {
		chain := deny.chains[name]
		if chain == nil || chain.Hooknum == nil {
			return nil, nil
		}
		rules, err := k.reader.GetRules(deny.table, chain)
		if err != nil {
			return nil, fmt.Errorf("nft: read the static deny: %w", err)
		}
		if len(rules) == 0 {
			return nil, nil
		}
		seen.chains = append(seen.chains, chain)
		seen.rules = append(seen.rules, rules...)
	}
	return seen, nil
}

// keepDeny remembers the static deny for the time when it is gone, or says that it is not there.
func (k *Kernel) keepDeny() error {
	live, err := k.inventory()
	if err != nil {
		return err
	}
	seen, err := k.seeDeny(live)
	if err != nil {
		return err
	}
	if seen == nil {
		return fmt.Errorf("nft: %w", ErrNoBackstop)
	}
	k.deny = seen
	return nil
}

// restoreDeny puts the static deny of a rack back where it is gone or empty, with our port alone
// open: each other gatewayd adds its own when it sees the change. One that was loaded anew is the
// one that counts, and has our port added, whose own tables are in force.
func (k *Kernel) restoreDeny() (drifted bool, err error) {
	if k.deny == nil {
		return false, nil
	}
	live, err := k.inventory()
	if err != nil {
		return false, err
	}
	seen, err := k.seeDeny(live)
	if err != nil {
		return false, err
	}
	if seen != nil {
		k.deny = seen
		opened, err := k.opened(live)
		if opened || err != nil {
			return false, err
		}
		if err := k.queueDeny(live); err != nil {
			return true, err
		}
	} else if err := k.queueBackstop(live); err != nil {
		return true, err
	}
	if err := k.owner.Flush(); err != nil {
		return true, fmt.Errorf("nft: static deny: %w", err)
	}
	return true, nil
}

// opened tells whether our port is no longer the static deny's.
func (k *Kernel) opened(live *inventory) (bool, error) {
	elements, err := k.reader.GetSetElements(live.tables[key("inet", ruleset.DenyTable)].sets[ruleset.OpenSet])
	if err != nil {
		return false, fmt.Errorf("nft: read the static deny: %w", err)
	}
	for _, e := range elements {
		if bytes.Equal(e.Key, ruleset.InterfaceKey(k.opt.Interface)) {
			return true, nil
		}
	}
	return false, nil
}

// queueBackstop makes the table out of the copy. Two gatewayds may do so at once: what is left is one
// copy with both ports open. Rules in a table without the set are the deny of somebody else: they stay.
func (k *Kernel) queueBackstop(live *inventory) error {
	t := k.owner.AddTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: ruleset.DenyTable})
	if have := live.tables[key("inet", ruleset.DenyTable)]; have == nil || have.sets[ruleset.OpenSet] != nil {
		k.owner.FlushTable(t)
	}
	set := &nftables.Set{Table: t, Name: ruleset.OpenSet, KeyType: nftables.TypeIFName, KeyByteOrder: binaryutil.NativeEndian, Size: k.deny.size}
	if err := k.owner.AddSet(set, []nftables.SetElement{{Key: ruleset.InterfaceKey(k.opt.Interface)}}); err != nil {
		return fmt.Errorf("nft: static deny: %w", err)
	}
	for _, c := range k.deny.chains {
		k.owner.AddChain(&nftables.Chain{Table: t, Name: c.Name, Hooknum: c.Hooknum, Priority: c.Priority, Type: c.Type, Policy: c.Policy})
	}
	for _, r := range k.deny.rules {
		k.owner.AddRule(&nftables.Rule{Table: t, Chain: &nftables.Chain{Table: t, Name: r.Chain.Name}, Exprs: r.Exprs})
	}
	return nil
}
