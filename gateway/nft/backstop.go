package nft

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"

	"portcullis/gateway/ruleset"
)

// denyPriority is where the static deny sits: before connection tracking and our own tables.
const denyPriority = -290

// denyChains are the base chains of the static deny, with the names that each compares.
var denyChains = []struct {
	name string
	hook *nftables.ChainHook
	keys []expr.MetaKey
}{
	{"prerouting", nftables.ChainHookPrerouting, []expr.MetaKey{expr.MetaKeyIIFNAME}},
	{"input", nftables.ChainHookInput, []expr.MetaKey{expr.MetaKeyIIFNAME}},
	{"forward", nftables.ChainHookForward, []expr.MetaKey{expr.MetaKeyIIFNAME, expr.MetaKeyOIFNAME}},
	{"output", nftables.ChainHookOutput, []expr.MetaKey{expr.MetaKeyOIFNAME}},
}

// errNotPutBack: somebody changed the static deny again at once. It is tried again.
var errNotPutBack = errors.New("nft: the static deny is not whole though it was put back")

// backstop is the static deny of a rack as it was when it was last seen whole. It is nobody's
// table, so that any process may take it away (nft flush ruleset, which the usual
// nftables.conf begins with) or add to it, and with that open the trunk and the ports of nobody.
type backstop struct {
	size   uint32   // of the set open
	denied []denied // at each place, sorted
	chains []*nftables.Chain
	rules  []*nftables.Rule
}

// denied is what one rule drops: the interfaces of this name, or whose names begin with it where it is
// shorter than a name's sixteen bytes.
type denied struct {
	name string
	kept bool // also those in the set open: the rule of the file for one port, loaded by somebody else
}

// has tells whether the deny has a port, by its key, once that is not in the set open.
func (b *backstop) has(port []byte) bool {
	return slices.ContainsFunc(b.denied, func(d denied) bool { return bytes.HasPrefix(port, []byte(d.name)) })
}

// seeDeny takes a copy of the static deny; nil where it is not whole. Whole is nothing more and
// nothing less than what its file has, for whichever names: at each place the same ones are dropped. So all
// who look take the same for whole, and no two of them undo what the other has put back.
func (k *Kernel) seeDeny(live *inventory) (*backstop, error) {
	deny := live.tables[key("inet", ruleset.DenyTable)]
	if deny == nil || deny.table.Flags != 0 || len(deny.chains) != len(denyChains) || len(deny.sets) != 1 || !openSet(deny.sets[ruleset.OpenSet]) {
		return nil, nil
	}
	seen := &backstop{size: deny.sets[ruleset.OpenSet].Size}
	for _, want := range denyChains {
		chain := deny.chains[want.name]
		if !denyChain(chain, want.hook) || chain.Policy == nil || *chain.Policy != nftables.ChainPolicyAccept {
			return nil, nil
		}
		rules, err := k.reader.GetRules(deny.table, chain)
		if err != nil {
			return nil, fmt.Errorf("nft: read the static deny: %w", err)
		}
		at := map[expr.MetaKey][]denied{}
		for _, r := range rules {
			what, d, ok := denyRule(r.Exprs)
			if !ok || !slices.Contains(want.keys, what) {
				return nil, nil
			}
			at[what] = append(at[what], d)
		}
		for _, what := range want.keys {
			if !seen.same(at[what]) {
				return nil, nil
			}
		}
		seen.chains = append(seen.chains, chain)
		seen.rules = append(seen.rules, rules...)
	}
	if !slices.ContainsFunc(seen.denied, func(d denied) bool { return !d.kept }) {
		return nil, nil
	}
	return seen, nil
}

// same takes what is dropped at one place. It has to be the same as at those before.
func (b *backstop) same(list []denied) bool {
	slices.SortFunc(list, byName)
	if b.denied == nil {
		b.denied = list
	}
	return len(list) > 0 && slices.Equal(list, b.denied)
}

func byName(x, y denied) int {
	if c := strings.Compare(x.name, y.name); c != 0 || x.kept == y.kept {
		return c
	}
	if x.kept {
		return 1
	}
	return -1
}

func openSet(s *nftables.Set) bool {
	return s != nil && s.KeyType.Name == nftables.TypeIFName.Name && !s.IsMap && !s.HasTimeout && !s.Interval && !s.Dynamic && !s.Constant && !s.Concatenation
}

// denyChain tells whether c is the base chain of that hook; what it does with what no rule matches is changed in place.
func denyChain(c *nftables.Chain, hook *nftables.ChainHook) bool {
	return c != nil && c.Type == nftables.ChainTypeFilter && c.Hooknum != nil && *c.Hooknum == *hook && c.Priority != nil && *c.Priority == denyPriority
}

// denyRule reads a rule of the static deny: an interface's name is compared with one, and looked for
// in the set open; what matches is counted and dropped.
func denyRule(exprs []expr.Any) (what expr.MetaKey, d denied, ok bool) {
	var names, lookups, counters, drops int
	for i, e := range exprs {
		switch e := e.(type) {
		case *expr.Meta:
			if i > 0 && e.Key != what || e.SourceRegister {
				return 0, denied{}, false
			}
			what = e.Key
		case *expr.Cmp:
			if e.Op != expr.CmpOpEq || len(e.Data) == 0 {
				return 0, denied{}, false
			}
			d.name = string(e.Data)
			names++
		case *expr.Lookup:
			if e.SetName != ruleset.OpenSet || !e.Invert || e.IsDestRegSet {
				return 0, denied{}, false
			}
			lookups++
		case *expr.Counter:
			counters++
		case *expr.Verdict:
			if e.Kind != expr.VerdictDrop || i != len(exprs)-1 {
				return 0, denied{}, false
			}
			drops++
		default:
			return 0, denied{}, false
		}
	}
	d.kept = lookups == 0
	return what, d, names == 1 && lookups <= 1 && counters == 1 && drops == 1
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

// restoreDeny puts the static deny of a rack back where it is not whole, and the elements of its set
// open right: each gatewayd opens its own port when it sees the change. One that was loaded anew is the one that counts.
func (k *Kernel) restoreDeny() (found []Drift, err error) {
	if k.deny == nil {
		return nil, nil
	}
	if k.heard.deny > 0 {
		found, err = k.restoreWhole()
		k.heard.deny = due(k.heard.deny, found, err)
		if err != nil {
			return found, err
		}
	}
	if k.heard.open == 0 {
		if err := k.lookForGone(); err != nil {
			return found, err
		}
	}
	if k.heard.open > 0 {
		open, failed := k.restoreOpen()
		k.heard.open = due(k.heard.open, open, failed)
		found, err = append(found, open...), failed
	}
	return found, err
}

// restoreWhole puts the static deny back where it is not whole.
func (k *Kernel) restoreWhole() (found []Drift, err error) {
	live, seen, err := k.lookAtDeny()
	if err == nil && !k.deny.stands(seen) {
		live, seen, err = k.lookAtDeny() // as snapshot: what is put back was missed twice
	}
	if err != nil {
		return nil, err
	}
	if !k.deny.stands(seen) {
		found = []Drift{{Reason: DenyChanged}}
	}
	if seen == nil {
		return found, k.putBack(live)
	}
	k.deny = seen
	return found, nil
}

func (k *Kernel) lookAtDeny() (live *inventory, seen *backstop, err error) {
	_, err = k.steady(func() (err error) {
		if live, err = k.inventory(); err == nil {
			seen, err = k.seeDeny(live)
		}
		return err
	})
	return live, seen, err
}

// stands tells whether seen denies what the copy does; nil = the table is not there, or not whole.
func (b *backstop) stands(seen *backstop) bool {
	return seen != nil && slices.Equal(seen.denied, b.denied)
}

// putBack makes the table out of the copy, and looks whether it is there.
func (k *Kernel) putBack(live *inventory) error {
	t := denyTable()
	have := live.tables[key("inet", ruleset.DenyTable)]
	switch {
	case have != nil && have.table.Flags&nftables.TableFlagPersist != 0:
		// It outlived its owner. The kernel takes that flag from no table: it goes as a whole.
		k.owner.DelTable(have.table)
		have = nil
	case have != nil && have.table.Flags != 0:
		// It sleeps. The kernel takes no new base chains in the transaction that wakes it.
		k.owner.AddTable(t)
		if err := k.owner.Flush(); err != nil {
			return fmt.Errorf("nft: static deny: %w", err)
		}
	}
	if err := k.queueBackstop(t, have); err != nil {
		return err
	}
	if err := k.owner.Flush(); err != nil {
		return fmt.Errorf("nft: static deny: %w", err)
	}
	live, err := k.inventory()
	if err != nil {
		return err
	}
	seen, err := k.seeDeny(live)
	if err == nil && seen == nil {
		err = errNotPutBack
	}
	if err == nil {
		k.deny = seen
	}
	return err
}

// queueBackstop fills the table from the copy. Two gatewayds may do so at once: what is left is one
// copy with both ports open. Rules in a table without the set are the deny of somebody else: they stay.
func (k *Kernel) queueBackstop(t *nftables.Table, have *liveTable) error {
	k.owner.AddTable(t)
	if have != nil && (have.sets[ruleset.OpenSet] != nil || len(notOfFile(have)) > 0) {
		k.owner.FlushTable(t)
		k.queueForeign(have)
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

// queueForeign takes out what the file does not have, after all rules. Sets first: one of verdicts may name a
// chain. A set open of another kind or size goes as well: the kernel would not add ours to it.
func (k *Kernel) queueForeign(have *liveTable) {
	for name, s := range have.sets {
		if name != ruleset.OpenSet || !openSet(s) || s.Size != k.deny.size {
			k.owner.DelSet(s)
		}
	}
	for _, c := range notOfFile(have) {
		k.owner.DelChain(c)
	}
}

// notOfFile lists the chains that the file does not have, or has elsewhere.
func notOfFile(have *liveTable) (list []*nftables.Chain) {
	for name, c := range have.chains {
		own := false
		for _, want := range denyChains {
			own = own || name == want.name && denyChain(c, want.hook)
		}
		if !own {
			list = append(list, c)
		}
	}
	return list
}
