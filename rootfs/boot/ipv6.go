package boot

import (
	"errors"
	"io/fs"
	"os"
)

// ReasonIPv6: the kernel's IPv6 could not be silenced.
const ReasonIPv6 Reason = "ipv6"

// DisableIPv6 turns IPv6 off on all interfaces, those that appear later
// included. It must come before any is brought up: otherwise the kernel announces
// itself (neighbour discovery, MLD, router solicitation) on a link where the gateway
// counts every such frame as an attempt to get around it.
func DisableIPv6() error {
	for _, which := range []string{"all", "default"} {
		err := os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) { // a kernel without IPv6 has nothing to turn off
			return Failf(ReasonIPv6, "%w", err)
		}
	}
	return nil
}
