package probe

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"portcullis/attestserver/protocol"
)

// filters lists the tables of the packet filter, their chains that packets come
// through, and a digest of all rules without their counters. A kernel that has
// not loaded the filter is not made to.
func (p *Net) filters() (tables []protocol.FilterTable, rules string, err error) {
	if _, err := os.Stat(filepath.Join(p.Sys, "module/nf_tables")); err != nil {
		return nil, "", nil
	}
	var parts [3][][]byte
	for i, kind := range []int{unix.NFT_MSG_GETTABLE, unix.NFT_MSG_GETCHAIN, unix.NFT_MSG_GETRULE} {
		if parts[i], err = p.NFT(kind); err != nil {
			return nil, "", fmt.Errorf("packet filter: %w", err)
		}
	}
	return parseFilters(parts[0], parts[1], parts[2])
}

// nftDump asks the kernel for all tables, chains or rules (nfnetlink). Somebody
// who changes them meanwhile makes the kernel say so; then it is asked again.
func nftDump(kind int) (out [][]byte, err error) {
	for range viewTries {
		req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, unix.NLM_F_DUMP)
		req.AddData(&nl.Nfgenmsg{NfgenFamily: unix.AF_UNSPEC, Version: nl.NFNETLINK_V0})
		if out, err = req.Execute(unix.NETLINK_NETFILTER, 0); !errors.Is(err, netlink.ErrDumpInterrupted) && !errors.Is(err, syscall.EINTR) {
			return out, err
		}
	}
	return out, err
}

// families of the packet filter (nfproto).
var families = map[byte]string{1: "inet", 2: "ip", 3: "arp", 5: "netdev", 7: "bridge", 10: "ip6"}

// attributeType is what of an attribute's type is not a flag (NLA_TYPE_MASK).
const attributeType = 1<<14 - 1

// nfgenSize is the length of struct nfgenmsg: family, version, resource.
const nfgenSize = 4

// parseFilters reads the kernel's messages (linux/netfilter/nf_tables.h).
func parseFilters(tables, chains, rules [][]byte) (out []protocol.FilterTable, sum string, err error) {
	index := map[string]int{}
	for _, m := range tables {
		family, a, err := nftMessage(m)
		if err != nil {
			return nil, "", err
		}
		if len(out) == protocol.MaxFilterTables {
			return nil, "", fmt.Errorf("more than %d tables", protocol.MaxFilterTables)
		}
		t := protocol.FilterTable{Family: family, Name: text(a[unix.NFTA_TABLE_NAME])}
		index[family+" "+t.Name] = len(out)
		out = append(out, t)
	}
	for _, m := range chains {
		family, a, err := nftMessage(m)
		if err != nil {
			return nil, "", err
		}
		i, ok := index[family+" "+text(a[unix.NFTA_CHAIN_TABLE])]
		if !ok || a[unix.NFTA_CHAIN_HOOK] == nil {
			continue // made since, or reached from other chains only
		}
		hook, err := attributes(a[unix.NFTA_CHAIN_HOOK])
		if err != nil {
			return nil, "", err
		}
		if len(out[i].Chains) == protocol.MaxFilterChains {
			return nil, "", fmt.Errorf("more than %d chains", protocol.MaxFilterChains)
		}
		out[i].Chains = append(out[i].Chains, protocol.FilterChain{Name: text(a[unix.NFTA_CHAIN_NAME]), Type: text(a[unix.NFTA_CHAIN_TYPE]),
			Hook: int(word(hook[unix.NFTA_HOOK_HOOKNUM])), Priority: int(int32(word(hook[unix.NFTA_HOOK_PRIORITY])))})
	}
	h := sha256.New()
	for _, m := range rules {
		family, a, err := nftMessage(m)
		if err != nil {
			return nil, "", err
		}
		i, ok := index[family+" "+text(a[unix.NFTA_RULE_TABLE])]
		if !ok {
			continue
		}
		out[i].Rules++
		fmt.Fprintf(h, "%q %q %q\n", family, text(a[unix.NFTA_RULE_TABLE]), text(a[unix.NFTA_RULE_CHAIN]))
		if err := expressions(h, a[unix.NFTA_RULE_EXPRESSIONS]); err != nil {
			return nil, "", err
		}
	}
	return out, hex.EncodeToString(h.Sum(nil)), nil
}

// counting are expressions that packets change.
var counting = map[string]bool{"counter": true, "quota": true, "last": true, "limit": true, "connlimit": true}

// expressions digests what a rule does.
func expressions(h hash.Hash, b []byte) error {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return fmt.Errorf("rule: %w", err)
	}
	for _, e := range list {
		a, err := attributes(e.Value)
		if err != nil {
			return err
		}
		name, data := text(a[unix.NFTA_EXPR_NAME]), a[unix.NFTA_EXPR_DATA]
		if counting[name] {
			data = nil
		}
		fmt.Fprintf(h, "%q %x\n", name, data)
	}
	return nil
}

func nftMessage(m []byte) (family string, a map[uint16][]byte, err error) {
	if len(m) < nfgenSize {
		return "", nil, fmt.Errorf("packet filter: message of %d bytes", len(m))
	}
	if family = families[m[0]]; family == "" {
		family = fmt.Sprint(m[0])
	}
	a, err = attributes(m[nfgenSize:])
	return family, a, err
}

func attributes(b []byte) (map[uint16][]byte, error) {
	list, err := nl.ParseRouteAttr(b)
	if err != nil {
		return nil, fmt.Errorf("packet filter: %w", err)
	}
	out := make(map[uint16][]byte, len(list))
	for _, a := range list {
		out[a.Attr.Type&attributeType] = a.Value
	}
	return out, nil
}

func text(b []byte) string { return clean(strings.TrimRight(string(b), "\x00")) }

func word(b []byte) uint32 {
	if len(b) != 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}
