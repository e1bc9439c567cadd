package nft

import (
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"

	"portcullis/gateway/ruleset"
)

var nativeOrder = binary.NativeEndian

// inventory is what the kernel has of our tables and of the static deny; those of
// another port are not looked at.
type inventory struct {
	tables map[string]*liveTable
}

type liveTable struct {
	table    *nftables.Table
	chains   map[string]*nftables.Chain
	sets     map[string]*nftables.Set
	counters map[string]bool
}

func key(family, name string) string { return family + " " + name }

func (k *Kernel) inventory() (*inventory, error) {
	inv := &inventory{tables: map[string]*liveTable{}}
	tables, err := k.reader.ListTables()
	if err != nil {
		return nil, fmt.Errorf("nft: list tables: %w", err)
	}
	for _, t := range tables {
		fam := ""
		switch {
		case t.Family == nftables.TableFamilyINet && (t.Name == ruleset.IPTableOf(k.opt.PC) || t.Name == ruleset.DenyTable):
			fam = "inet"
		case t.Family == nftables.TableFamilyNetdev && t.Name == ruleset.LinkTableOf(k.opt.PC):
			fam = "netdev"
		default:
			continue
		}
		live := &liveTable{table: t, chains: map[string]*nftables.Chain{}, sets: map[string]*nftables.Set{}, counters: map[string]bool{}}
		inv.tables[key(fam, t.Name)] = live
		if err := k.fill(live); err != nil {
			return nil, err
		}
	}
	return inv, nil
}

func (k *Kernel) fill(live *liveTable) error {
	chains, err := k.reader.ListChainsOfTableFamily(live.table.Family)
	if err != nil {
		return fmt.Errorf("nft: list chains: %w", err)
	}
	for _, c := range chains {
		if c.Table.Name == live.table.Name {
			live.chains[c.Name] = c
		}
	}
	sets, err := k.reader.GetSets(live.table)
	if err != nil {
		return fmt.Errorf("nft: list sets: %w", err)
	}
	for _, s := range sets {
		if !s.Anonymous {
			s.Table = live.table
			live.sets[s.Name] = s
		}
	}
	objects, err := k.reader.GetNamedObjects(live.table)
	if err != nil {
		return fmt.Errorf("nft: list counters: %w", err)
	}
	for _, o := range objects {
		if n, ok := o.(*nftables.NamedObj); ok && n.Type == nftables.ObjTypeCounter {
			live.counters[n.Name] = true
		}
	}
	return nil
}

// anyKept tells whether the kernel knows the flags: one of our tables has an owner, whoever that is, or had
// one and outlived it. Where that cannot be read it is taken for true, which gives up no protection.
func (k *Kernel) anyKept() bool {
	tables, err := k.reader.ListTables()
	if err != nil {
		return true
	}
	for _, t := range tables {
		if (t.Name == ruleset.IPTableOf(k.opt.PC) || t.Name == ruleset.LinkTableOf(k.opt.PC)) && t.Flags&(nftables.TableFlagOwner|nftables.TableFlagPersist) != 0 {
			return true
		}
	}
	return false
}
