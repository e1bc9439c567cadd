package expect_test

import (
	"bytes"
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// attribute is a netlink attribute.
func attribute(kind int, parts ...[]byte) []byte {
	v := bytes.Join(parts, nil)
	b := binary.NativeEndian.AppendUint16(nil, uint16(4+len(v)))
	b = append(binary.NativeEndian.AppendUint16(b, uint16(kind)), v...)
	return append(b, make([]byte, (4-len(b)%4)%4)...)
}

func named(kind int, s string) []byte { return attribute(kind, []byte(s+"\x00")) }

func (m *machine) filter(kind int, family byte, attributes ...[]byte) {
	m.nft[kind] = append(m.nft[kind], append([]byte{family, 0, 0, 0}, bytes.Join(attributes, nil)...))
}

// table, chain and rule put something into the packet filter.
func (m *machine) table(family byte, name string) {
	m.filter(unix.NFT_MSG_GETTABLE, family, named(unix.NFTA_TABLE_NAME, name))
}

func (m *machine) chain(family byte, table, name string, hook, priority int) {
	m.filter(unix.NFT_MSG_GETCHAIN, family, named(unix.NFTA_CHAIN_TABLE, table), named(unix.NFTA_CHAIN_NAME, name), named(unix.NFTA_CHAIN_TYPE, "nat"),
		attribute(unix.NFTA_CHAIN_HOOK|1<<15, attribute(unix.NFTA_HOOK_HOOKNUM, binary.BigEndian.AppendUint32(nil, uint32(hook))),
			attribute(unix.NFTA_HOOK_PRIORITY, binary.BigEndian.AppendUint32(nil, uint32(int32(priority))))))
}

func (m *machine) rule(family byte, table, chain, expression, data string) {
	m.filter(unix.NFT_MSG_GETRULE, family, named(unix.NFTA_RULE_TABLE, table), named(unix.NFTA_RULE_CHAIN, chain),
		attribute(unix.NFTA_RULE_EXPRESSIONS|1<<15, attribute(unix.NFTA_LIST_ELEM|1<<15, named(unix.NFTA_EXPR_NAME, expression),
			attribute(unix.NFTA_EXPR_DATA|1<<15, []byte(data)))))
}
