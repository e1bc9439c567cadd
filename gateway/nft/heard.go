package nft

import (
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"portcullis/gateway/ruleset"
)

// dueLooks is how many looks in turn must find a thing as it should be before it is left alone until the kernel tells
// of it: one may have read a list while a transaction was taken back, as in snapshot.
const dueLooks = 2

// lookAtAll is after how long the next look reads everything again, whatever the kernel told.
const lookAtAll = time.Minute

// heard is what has to be looked at, by what the kernel told since the last look. It tells all who listen of each table,
// chain, rule, set and element of a transaction, and then of the generation, before the transaction has ended;
// a message that finds no room is told as an error. So whatever was read after these messages
// were taken stays as it was until there are others. Two things change without a word: a table whose owner ends goes,
// where it is not persistent (look lists the tables for that), and the chains of an interface that is taken away (package link tells).
type heard struct {
	conn *netlink.Conn
	raw  syscall.RawConn
	buf  []byte
	last uint32    // generation that was told last; 0 = none
	all  time.Time // when all was due at last

	own, deny, open int // looks that are due
	judges          map[string]judgement
}

// judgement is which port a gatewayd's inet table judges; nil = none.
type judgement struct {
	port []byte
	due  int
}

func listen(netns int) (*heard, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, &netlink.Config{NetNS: netns})
	if err != nil {
		return nil, err
	}
	h := &heard{conn: conn, buf: make([]byte, 1<<17)}
	if h.raw, err = conn.SyscallConn(); err == nil {
		err = conn.JoinGroup(unix.NFNLGRP_NFTABLES)
	}
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	h.everything()
	return h, nil
}

// everything is due, and nothing that was read is trusted.
func (h *heard) everything() {
	h.own, h.deny, h.open = dueLooks, dueLooks, dueLooks
	h.judges = map[string]judgement{}
}

// hear takes what the kernel has told of all transactions that have ended. What is read behind it is at least as new.
func (k *Kernel) hear() error {
	h := k.heard
	if now := time.Now(); now.Sub(h.all) >= lookAtAll {
		h.all = now
		h.everything()
	}
	err := k.settled()
	if err != nil {
		err = fmt.Errorf("nft: wait for a change to end: %w", err)
	}
	var generation uint32
	if err == nil {
		generation, err = k.generation()
	}
	whole := k.take()
	if behind := int32(h.last-generation) < 0; err != nil || !whole || behind {
		if behind {
			h.last = generation
		}
		h.everything()
	}
	return err
}

func (k *Kernel) generation() (uint32, error) {
	g, err := k.reader.GetGen()
	if err != nil {
		return 0, fmt.Errorf("nft: read the generation: %w", err)
	}
	return g.ID, nil
}

// take empties the socket. It is not whole where a message is lost: the kernel goes on dropping without a word until
// the socket is empty, so that this is for all that is taken at once.
func (k *Kernel) take() (whole bool) {
	whole = true
	failed := k.heard.raw.Control(func(fd uintptr) {
		for {
			n, _, flags, from, err := unix.Recvmsg(int(fd), k.heard.buf, nil, unix.MSG_DONTWAIT)
			kernel, isNetlink := from.(*unix.SockaddrNetlink)
			switch {
			case errors.Is(err, unix.EINTR):
			case errors.Is(err, unix.EAGAIN):
				return
			case errors.Is(err, unix.ENOBUFS):
				whole = false
			case err != nil:
				whole = false
				return
			case !isNetlink || kernel.Pid != 0: // not the kernel's word
			case flags&unix.MSG_TRUNC != 0 || !k.note(k.heard.buf[:n]):
				whole = false
			}
		}
	})
	return whole && failed == nil
}

// note takes the messages of one packet.
func (k *Kernel) note(packet []byte) (whole bool) {
	msgs, err := syscall.ParseNetlinkMessage(packet)
	if err != nil {
		return false
	}
	for _, m := range msgs {
		a := k.about(m.Header.Type, m.Data)
		if !a.known || a.generation != 0 && !k.heard.follows(a.generation) {
			return false
		}
		k.heard.mark(a)
	}
	return true
}

// follows takes a generation's number. Each is one more than the one before, and none is 0.
func (h *heard) follows(generation uint32) bool {
	next := h.last + 1
	if next == 0 {
		next = 1
	}
	in := h.last == 0 || generation == next
	h.last = generation
	return in
}

func (h *heard) mark(a about) {
	if a.own {
		h.own = dueLooks
	}
	if a.deny {
		h.deny = dueLooks
	}
	if a.open {
		h.open = dueLooks
		delete(h.judges, a.table)
	}
}

// about is what of a look a message of the kernel makes due.
type about struct {
	known           bool
	own, deny, open bool
	table           string // whose judgement is not known any more, with open
	generation      uint32 // not 0: it ends a transaction
}

// weight orders the editors among whom one is named.
func (a about) weight() int {
	switch {
	case a.own || a.deny || a.open && a.table == ruleset.DenyTable:
		return 2
	case a.open:
		return 1
	}
	return 0
}

// about reads a message: nfgenmsg with the family, and attributes the first of which is always the name of the table, or
// the number of the generation. The elements of a set say nothing about our tables, which are compared
// without, nor about whom a table judges: a run that is renewed makes nothing due.
func (k *Kernel) about(kind uint16, data []byte) about {
	if kind>>8 != unix.NFNL_SUBSYS_NFTABLES || len(data) < 4 {
		return about{}
	}
	const first = 1 // NFTA_TABLE_NAME, NFTA_CHAIN_TABLE and so on, and NFTA_GEN_ID
	ad, err := netlink.NewAttributeDecoder(data[4:])
	if err != nil {
		return about{}
	}
	var value []byte
	for ad.Next() {
		if ad.Type() == first {
			value = ad.Bytes()
			break
		}
	}
	kind &= 0xff
	switch {
	case ad.Err() != nil || len(value) == 0:
		return about{}
	case kind == unix.NFT_MSG_NEWGEN:
		if len(value) != 4 {
			return about{}
		}
		return about{known: true, generation: binary.BigEndian.Uint32(value)}
	}
	a := about{known: true, table: unix.ByteSliceToString(value)}
	elements := kind == unix.NFT_MSG_NEWSETELEM || kind == unix.NFT_MSG_DELSETELEM
	switch nftables.TableFamily(data[0]) {
	case nftables.TableFamilyINet:
		a.own = !elements && a.table == ruleset.IPTableOf(k.opt.PC)
		a.deny = !elements && a.table == ruleset.DenyTable
		a.open = !elements && ruleset.IsIPTable(a.table) || a.table == ruleset.DenyTable
	case nftables.TableFamilyNetdev:
		a.own = !elements && a.table == ruleset.LinkTableOf(k.opt.PC)
	}
	return a
}

// due counts a look down. One that found something, or failed, is not the last.
func due(looks int, found []Drift, err error) int {
	if err != nil || len(found) > 0 {
		return dueLooks
	}
	return max(looks-1, 0)
}
