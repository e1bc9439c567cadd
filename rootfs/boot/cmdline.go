package boot

import (
	"encoding/hex"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// BlockSize is the only block size in use, for data and for hashes, in bytes.
const BlockSize = 4096

// ReasonCmdline: the kernel command line does not name one verity root.
const ReasonCmdline Reason = "cmdline-verity"

// Verity are the parameters of a dm-verity device of format 1 with SHA-256:
// data blocks first, the hash tree behind them on the same device.
type Verity struct {
	RootHash   string // 64 hex digits, lower case
	Salt       string // hex, 0 to 256 bytes (the kernel's limit)
	DataBlocks uint64 // of BlockSize
	HashStart  uint64 // first block of the tree, in BlockSize
}

// ReadCmdline returns the kernel's command line.
func ReadCmdline() (string, error) {
	b, err := os.ReadFile("/proc/cmdline")
	return strings.TrimSpace(string(b)), err
}

// ParseVerity takes the verity root from a command line:
//
//	roothash=<hex> portcullis.verity=<salt hex>,<data blocks>,<hash start block>
//
// Each word must stand there exactly once: of two, an attacker who can append
// words would choose one.
func ParseVerity(cmdline string) (Verity, error) {
	fail := func(format string, args ...any) (Verity, error) {
		return Verity{}, Failf(ReasonCmdline, format, args...)
	}
	root, err := single(cmdline, "roothash")
	if err != nil {
		return fail("%w", err)
	}
	geometry, err := single(cmdline, "portcullis.verity")
	if err != nil {
		return fail("%w", err)
	}
	if !isHex(root) || len(root) != 64 {
		return fail("roothash is not 64 lower-case hex digits")
	}
	parts := strings.Split(geometry, ",")
	if len(parts) != 3 {
		return fail("portcullis.verity has %d fields instead of 3", len(parts))
	}
	v := Verity{RootHash: root, Salt: parts[0]}
	if v.Salt == "" || !isHex(v.Salt) || len(v.Salt) > 512 {
		return fail("the salt is not hex of 1 to 256 bytes")
	}
	if v.DataBlocks, err = blocks(parts[1]); err != nil {
		return fail("data blocks: %w", err)
	}
	if v.HashStart, err = blocks(parts[2]); err != nil {
		return fail("hash start: %w", err)
	}
	if v.HashStart < v.DataBlocks {
		return fail("the hash tree starts inside the data")
	}
	return v, nil
}

// single returns the value of key=value, which must occur exactly once.
func single(cmdline, key string) (string, error) {
	value, n := "", 0
	for _, w := range strings.Fields(cmdline) {
		if k, v, ok := strings.Cut(w, "="); ok && k == key {
			value, n = v, n+1
		}
	}
	if n != 1 {
		return "", fmt.Errorf("%s stands %d times on the command line instead of once", key, n)
	}
	return value, nil
}

func isHex(s string) bool {
	_, err := hex.DecodeString(s)
	return err == nil && strings.ToLower(s) == s
}

// blocks parses a count of blocks: decimal, positive, and small enough that its
// size in 512-byte sectors fits an int64.
func blocks(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 10, 48)
	if err != nil {
		return 0, err
	}
	if n == 0 || strconv.FormatUint(n, 10) != s {
		return 0, fmt.Errorf("%q is not a plain positive number", s)
	}
	return n, nil
}
