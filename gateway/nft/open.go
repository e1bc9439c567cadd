package nft

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"portcullis/gateway/ruleset"
)

// openTries bounds how often the set open is put right in vain since somebody else was quicker.
const openTries = 16

// restoreOpen puts the elements of the set open right: our port is in it, and of the others those that the tables
// of another gatewayd judge; nobody would deny what else is in it. A gatewayd puts its tables in place
// and its port into the set in one transaction, so that at no generation of the
// rulesets the one is there without the other: what is compared is read within one generation, and what is
// changed is refused by the kernel in another. So no other gatewayd's port is ever taken from it.
func (k *Kernel) restoreOpen() (found []Drift, err error) {
	own := ruleset.InterfaceKey(k.opt.Interface)
	twice := ""
	for range openTries {
		var elements []nftables.SetElement
		var judges map[string]judgement
		generation, err := k.steady(func() (err error) { elements, judges, err = k.readOpen(); return err })
		if err != nil {
			return found, err
		}
		k.heard.judges = judges
		judged := map[string]bool{}
		for _, j := range judges {
			if j.port != nil {
				judged[string(j.port)] = true
			}
		}
		if !judged[string(own)] {
			k.heard.judges = map[string]judgement{}
			return found, errNotPutBack // our own tables have gone again, and there is a change that tells us
		}
		keep, drift := compareOpen(elements, own, judged)
		if len(drift) == 0 {
			return found, nil
		}
		if said := fmt.Sprint(drift); said != twice {
			twice = said // it is looked at again, as in snapshot, and with nothing that was read before
			k.heard.judges = map[string]judgement{}
			continue
		}
		found = drift // also where another gatewayd is the one that puts it right
		// All are taken out, since an element without a key cannot be named.
		set := &nftables.Set{Table: denyTable(), Name: ruleset.OpenSet, KeyType: nftables.TypeIFName}
		k.owner.FlushSet(set)
		if err := k.owner.SetAddElements(set, keep); err != nil {
			return found, fmt.Errorf("nft: static deny: %w", err)
		}
		err = k.owner.FlushWithGenID(generation)
		if err == nil {
			return found, nil
		}
		if !errors.Is(err, unix.ERESTART) {
			return found, fmt.Errorf("nft: static deny: %w", err)
		}
	}
	return found, errUnsettled
}

func denyTable() *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyINet, Name: ruleset.DenyTable}
}

// readOpen reads the set open, and which ports are judged.
func (k *Kernel) readOpen() (elements []nftables.SetElement, judges map[string]judgement, err error) {
	if err := k.hear(); err != nil {
		return nil, nil, err
	}
	elements, err = k.reader.GetSetElements(&nftables.Set{Table: denyTable(), Name: ruleset.OpenSet})
	if err != nil {
		return nil, nil, fmt.Errorf("nft: read the static deny: %w", err)
	}
	judges, err = k.judged()
	return elements, judges, err
}

// compareOpen tells what of the set open stays, and how it differs from that.
func compareOpen(elements []nftables.SetElement, own []byte, judged map[string]bool) (keep []nftables.SetElement, found []Drift) {
	keep = []nftables.SetElement{{Key: own}}
	missing := true
	var foreign []string
	for _, e := range elements {
		switch {
		case bytes.Equal(e.Key, own):
			missing = false
		case judged[string(e.Key)]:
			keep = append(keep, nftables.SetElement{Key: e.Key})
		case len(e.Key) == 0:
			foreign = append(foreign, "*") // which stands for whatever is not in the set
		default:
			foreign = append(foreign, strings.ToValidUTF8(string(bytes.TrimRight(e.Key, "\x00")), "?"))
		}
	}
	if missing {
		found = append(found, Drift{Reason: OpenMissing, Ports: []string{string(bytes.TrimRight(own, "\x00"))}})
	}
	if len(foreign) > 0 {
		slices.Sort(foreign)
		found = append(found, Drift{Reason: OpenForeign, Ports: foreign})
	}
	return keep, found
}

// gatewaydTables lists the inet tables that a gatewayd has or had, but for those that sleep.
func (k *Kernel) gatewaydTables() (list []*nftables.Table, err error) {
	tables, err := k.reader.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, fmt.Errorf("nft: list tables: %w", err)
	}
	for _, t := range tables {
		if ruleset.IsIPTable(t.Name) && t.Flags&nftables.TableFlagDormant == 0 {
			list = append(list, t)
		}
	}
	return list, nil
}

// lookForGone makes a look at the set open due where a table has gone without a word, or is not trusted yet.
func (k *Kernel) lookForGone() error {
	tables, err := k.gatewaydTables()
	if err != nil {
		k.heard.open = dueLooks
		return err
	}
	known := 0
	for _, t := range tables {
		if j, ok := k.heard.judges[t.Name]; ok && j.due == 0 {
			known++
		}
	}
	if known != len(tables) || known != len(k.heard.judges) {
		k.heard.open = dueLooks
	}
	return nil
}

// judged tells which ports the tables of a gatewayd judge, whether that lives or not. What was read often enough and
// of which the kernel has told nothing since is not read again.
func (k *Kernel) judged() (map[string]judgement, error) {
	tables, err := k.gatewaydTables()
	if err != nil {
		return nil, err
	}
	out := map[string]judgement{}
	for _, t := range tables {
		before, known := k.heard.judges[t.Name]
		if known && before.due == 0 {
			out[t.Name] = before
			continue
		}
		port, err := k.judgedBy(t)
		if err != nil {
			return nil, err
		}
		now := judgement{port: port, due: dueLooks - 1}
		if known && bytes.Equal(port, before.port) {
			now.due = before.due - 1
		}
		out[t.Name] = now
	}
	return out, nil
}

// judgedBy is the port whose packets a table takes in hand at every place where the static deny would drop
// them; nil where there is none, or where anything comes before that. What the table then says of
// them its own gatewayd answers for.
func (k *Kernel) judgedBy(t *nftables.Table) ([]byte, error) {
	var port []byte
	for _, place := range denyChains {
		chain, err := k.reader.ListChain(t, place.name)
		if errors.Is(err, unix.ENOENT) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("nft: read the tables of the ports: %w", err)
		}
		if chain.Type != nftables.ChainTypeFilter || chain.Hooknum == nil || *chain.Hooknum != *place.hook {
			return nil, nil
		}
		rules, err := k.reader.GetRules(t, chain)
		if err != nil {
			return nil, fmt.Errorf("nft: read the tables of the ports: %w", err)
		}
		if len(rules) != len(place.keys) {
			return nil, nil
		}
		for i, r := range rules {
			name := takesInHand(r.Exprs, place.keys[i])
			if name == nil || port != nil && !bytes.Equal(name, port) {
				return nil, nil
			}
			port = name
		}
	}
	return port, nil
}

// takesInHand reads a rule that sends all packets of one port elsewhere for good: its name is
// compared, and that is all. nil = it is another rule.
func takesInHand(exprs []expr.Any, key expr.MetaKey) []byte {
	if len(exprs) != 3 {
		return nil
	}
	meta, isMeta := exprs[0].(*expr.Meta)
	cmp, isCmp := exprs[1].(*expr.Cmp)
	verdict, isVerdict := exprs[2].(*expr.Verdict)
	if !isMeta || !isCmp || !isVerdict || meta.Key != key || meta.SourceRegister || cmp.Op != expr.CmpOpEq ||
		len(cmp.Data) != len(ruleset.InterfaceKey("")) || verdict.Kind != expr.VerdictGoto {
		return nil
	}
	return cmp.Data
}
