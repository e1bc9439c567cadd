package nft

import (
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"portcullis/gateway/ruleset"
)

// register is where a rule's values pass through; sixteen bytes are the widest.
const register = unix.NFT_REG_1

// compile turns a rule into the kernel's expressions.
func compile(rule ruleset.Rule) ([]expr.Any, error) {
	var out []expr.Any
	for _, s := range rule {
		e, err := statement(s)
		if err != nil {
			return nil, fmt.Errorf("nft: %s: %w", s, err)
		}
		out = append(out, e...)
	}
	return out, nil
}

func statement(s ruleset.Statement) ([]expr.Any, error) {
	switch s := s.(type) {
	case ruleset.Match:
		return match(s)
	case ruleset.In:
		return lookup(s)
	case ruleset.Count:
		return []expr.Any{&expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: string(s)}}, nil
	case ruleset.Log:
		return log(s), nil
	case ruleset.SetMark:
		return []expr.Any{
			&expr.Immediate{Register: register, Data: native32(uint32(s))},
			&expr.Ct{Key: expr.CtKeyMARK, Register: register, SourceRegister: true},
		}, nil
	case ruleset.Slot:
		return []expr.Any{
			&expr.Numgen{Register: register, Modulus: s.Slots, Type: unix.NFT_NG_INCREMENTAL},
			&expr.Lookup{SourceRegister: register, SetName: s.Set, Invert: true},
			&expr.Dynset{SrcRegKey: register, SetName: s.Set, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: s.Timeout},
		}, nil
	case ruleset.Update:
		load, err := loadField(s.Field, register)
		if err != nil {
			return nil, err
		}
		return []expr.Any{load, &expr.Dynset{SrcRegKey: register, SetName: s.Set, Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: s.Timeout}}, nil
	case ruleset.Verdict:
		return verdict(s)
	case ruleset.ClampMSS:
		const maxseg, offset = 2, 2 // RFC 9293 §3.2: option kind 2, the value behind kind and length
		return []expr.Any{
			&expr.Rt{Register: register, Key: expr.RtTCPMSS},
			&expr.Byteorder{SourceRegister: register, DestRegister: register, Op: expr.ByteorderHton, Len: 2, Size: 2},
			&expr.Exthdr{SourceRegister: register, Type: maxseg, Offset: offset, Len: 2, Op: expr.ExthdrOpTcpopt},
		}, nil
	case ruleset.Masquerade:
		return []expr.Any{&expr.Masq{}}, nil
	}
	return nil, fmt.Errorf("statement %T is unknown", s)
}

func match(m ruleset.Match) ([]expr.Any, error) {
	load, err := loadField(m.Field, register)
	if err != nil {
		return nil, err
	}
	if len(m.Value) != int(m.Field.Len) {
		return nil, fmt.Errorf("value of %d bytes for a field of %d", len(m.Value), m.Field.Len)
	}
	out := []expr.Any{load}
	if m.Mask != nil {
		out = append(out, &expr.Bitwise{SourceRegister: register, DestRegister: register, Len: m.Field.Len, Mask: m.Mask, Xor: make([]byte, m.Field.Len)})
	}
	ops := map[ruleset.Op]expr.CmpOp{ruleset.Equal: expr.CmpOpEq, ruleset.NotEqual: expr.CmpOpNeq, ruleset.AtLeast: expr.CmpOpGte}
	op, ok := ops[m.Op]
	if !ok {
		return nil, fmt.Errorf("comparison %q is unknown", m.Op)
	}
	return append(out, &expr.Cmp{Op: op, Register: register, Data: m.Value}), nil
}

// lookup loads the fields into neighbouring registers of four bytes, as a
// concatenated key is laid out.
func lookup(l ruleset.In) ([]expr.Any, error) {
	var out []expr.Any
	reg := uint32(register)
	for i, f := range l.Fields {
		load, err := loadField(f, reg)
		if err != nil {
			return nil, err
		}
		out = append(out, load)
		if i == 0 && len(l.Fields) > 1 {
			reg = unix.NFT_REG32_00
		}
		reg += (f.Len + 3) / 4
	}
	return append(out, &expr.Lookup{SourceRegister: register, SetName: l.Set}), nil
}

func loadField(f ruleset.Field, reg uint32) (expr.Any, error) {
	switch f.Source {
	case ruleset.FromLink:
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseLLHeader, Offset: f.Offset, Len: f.Len}, nil
	case ruleset.FromNetwork:
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseNetworkHeader, Offset: f.Offset, Len: f.Len}, nil
	case ruleset.FromTransport:
		return &expr.Payload{DestRegister: reg, Base: expr.PayloadBaseTransportHeader, Offset: f.Offset, Len: f.Len}, nil
	case ruleset.FromMeta:
		return &expr.Meta{Key: expr.MetaKey(f.Key), Register: reg}, nil
	case ruleset.FromConntrack:
		return &expr.Ct{Key: expr.CtKey(f.Key), Register: reg}, nil
	}
	return nil, fmt.Errorf("field %s has no source", f.Name)
}

func log(l ruleset.Log) []expr.Any {
	var out []expr.Any
	if l.Rate > 0 {
		out = append(out, &expr.Limit{Type: expr.LimitTypePkts, Rate: l.Rate, Unit: expr.LimitTimeSecond, Burst: l.Burst})
	}
	const snaplen = 256
	return append(out, &expr.Log{
		Key:   1<<unix.NFTA_LOG_GROUP | 1<<unix.NFTA_LOG_PREFIX | 1<<unix.NFTA_LOG_SNAPLEN | 1<<unix.NFTA_LOG_QTHRESHOLD,
		Group: l.Group, Data: []byte(l.Prefix), Snaplen: snaplen, QThreshold: 1,
	})
}

func verdict(v ruleset.Verdict) ([]expr.Any, error) {
	kinds := map[string]expr.VerdictKind{"accept": expr.VerdictAccept, "drop": expr.VerdictDrop, "goto": expr.VerdictGoto}
	k, ok := kinds[v.Kind]
	if !ok {
		return nil, fmt.Errorf("verdict %q is unknown", v.Kind)
	}
	return []expr.Any{&expr.Verdict{Kind: k, Chain: v.Chain}}, nil
}

func family(name string) (nftables.TableFamily, error) {
	switch name {
	case "inet":
		return nftables.TableFamilyINet, nil
	case "netdev":
		return nftables.TableFamilyNetdev, nil
	}
	return 0, fmt.Errorf("nft: family %q is unknown", name)
}

func setOf(t *nftables.Table, s *ruleset.Set) (*nftables.Set, error) {
	out := &nftables.Set{Table: t, Name: s.Name, HasTimeout: true, Dynamic: s.Dynamic, Size: s.Size}
	switch s.Type {
	case ruleset.KeyIfName:
		out.KeyType, out.KeyByteOrder = nftables.TypeIFName, binaryutil.NativeEndian
	case ruleset.KeyMark:
		out.KeyType, out.KeyByteOrder = nftables.TypeMark, binaryutil.NativeEndian
	case ruleset.KeyTarget:
		out.KeyType = nftables.MustConcatSetType(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
		out.Concatenation = true
	default:
		return nil, fmt.Errorf("nft: set %s: key %q is unknown", s.Name, s.Type)
	}
	return out, nil
}

func baseChain(t *nftables.Table, c *ruleset.Chain) (*nftables.Chain, error) {
	out := &nftables.Chain{Table: t, Name: c.Name}
	if c.Hook == nil {
		return out, nil
	}
	points := map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput, "forward": nftables.ChainHookForward,
		"output": nftables.ChainHookOutput, "postrouting": nftables.ChainHookPostrouting,
		"ingress": nftables.ChainHookIngress, "egress": nftables.ChainHookEgress,
	}
	hook, ok := points[c.Hook.Point]
	if !ok {
		return nil, fmt.Errorf("nft: hook %q is unknown", c.Hook.Point)
	}
	policy := nftables.ChainPolicyAccept
	out.Type, out.Hooknum, out.Device = nftables.ChainType(c.Hook.Type), hook, c.Hook.Device
	out.Priority, out.Policy = nftables.ChainPriorityRef(nftables.ChainPriority(c.Hook.Priority)), &policy
	return out, nil
}
