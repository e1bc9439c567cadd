package nft

import (
	"bytes"
	"errors"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"portcullis/gateway/ruleset"
)

// ErrNoBackstop: the static deny of a rack is not in the kernel.
var ErrNoBackstop = errors.New("deny-missing: the table portcullis-deny with its set open is not loaded, or is not as its file has it; start portcullis-deny.service with DENY=/usr/lib/portcullis/portcullis-deny-rack.nft")

// ErrPortChanged: the kernel has our tables for another port, which no static deny would shut.
var ErrPortChanged = errors.New("port-changed: link.interface is not that of the tables in the kernel, and without them nothing would deny that port; they stay, and it stays shut: boot the Pi")

// errOther: a ruleset of another port, or of one port where there are several.
var errOther = errors.New("nft: the tables are those of another port")

// queueDeny takes our port, and no other, out of the static deny, in the transaction that puts our own
// deny in its place. The file for one port has no other: it goes whole. That
// of a rack stays for ever and has our port added to those that are no longer its own.
func (k *Kernel) queueDeny(live *inventory) error {
	was, err := k.givenUp(live)
	if err != nil {
		return err
	}
	deny := live.tables[key("inet", ruleset.DenyTable)]
	if deny == nil {
		return nil
	}
	open := deny.sets[ruleset.OpenSet]
	switch {
	case open != nil && k.opt.Interface != "":
		if was != nil {
			if err := k.queueGivenUp(was, open); err != nil {
				return err
			}
		}
		if err := k.owner.SetAddElements(open, []nftables.SetElement{{Key: ruleset.InterfaceKey(k.opt.Interface)}}); err != nil {
			return fmt.Errorf("nft: static deny: %w", err)
		}
	case open == nil && k.opt.PC == "":
		k.owner.DelTable(deny.table)
	}
	// Else it is the deny of another port, which only that one's gatewayd may end.
	return nil
}

// queueGivenUp gives a port that was ours back to the static deny. Should another gatewayd have it now,
// that one adds it again when it sees the change.
func (k *Kernel) queueGivenUp(was []byte, open *nftables.Set) error {
	// Added first: to delete what is not there would end the transaction.
	gone := []nftables.SetElement{{Key: was}}
	if err := errors.Join(k.owner.SetAddElements(open, gone), k.owner.SetDeleteElements(open, gone)); err != nil {
		return fmt.Errorf("nft: static deny: %w", err)
	}
	return nil
}

// givenUp is the port of the tables that we find at our first transaction, where it is another than ours,
// as a key of the set open: they are of a life with another link.interface, and nobody would judge that
// port any more. Where the static deny would not have it either, they stay as they are: ErrPortChanged.
func (k *Kernel) givenUp(live *inventory) ([]byte, error) {
	if k.want != nil || k.opt.Interface == "" {
		return nil, nil
	}
	was, err := k.portBefore(live)
	if err != nil || was == nil || bytes.Equal(was, ruleset.InterfaceKey(k.opt.Interface)) {
		return nil, err
	}
	deny, err := k.seeDeny(live)
	if err != nil {
		return nil, err
	}
	if deny == nil || !deny.has(was) {
		return nil, fmt.Errorf("nft: %w (there is %s, wanted is %s)", ErrPortChanged, bytes.TrimRight(was, "\x00"), k.opt.Interface)
	}
	return was, nil
}

// portBefore is the port of the tables that we find: the name that the rules of the chain input
// compare with. nil = there is no such table.
func (k *Kernel) portBefore(live *inventory) ([]byte, error) {
	table := live.tables[key("inet", ruleset.IPTableOf(k.opt.PC))]
	if table == nil || table.chains["input"] == nil {
		return nil, nil
	}
	rules, err := k.reader.GetRules(table.table, table.chains["input"])
	if err != nil {
		return nil, fmt.Errorf("nft: read the port of before: %w", err)
	}
	for _, r := range rules {
		for _, e := range r.Exprs {
			if c, ok := e.(*expr.Cmp); ok && c.Op == expr.CmpOpEq && len(c.Data) == len(ruleset.InterfaceKey("")) {
				return c.Data, nil
			}
		}
	}
	return nil, nil
}

// checkNames refuses a ruleset that is not for our tables, before anything is queued.
func (k *Kernel) checkNames(rs *ruleset.Ruleset) error {
	for _, t := range rs.Tables {
		if t.Name != ruleset.IPTableOf(k.opt.PC) && t.Name != ruleset.LinkTableOf(k.opt.PC) {
			return errOther
		}
	}
	return nil
}
