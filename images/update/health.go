package update

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"connectrpc.com/connect"
	"github.com/google/nftables"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/gateway/ruleset"
	"portcullis/internal/config"
	"portcullis/internal/rpc"
)

// HealthChecks are what a Pi with this configuration does when it works. Without
// one (nil) no service runs, and only the watchdog is looked at.
func HealthChecks(c *config.Config) []Check {
	checks := []Check{{"watchdog", func(context.Context) error { return watchdogFed("/proc/1/fd") }}}
	if c == nil {
		return checks
	}
	for _, pc := range c.PCs() {
		checks = append(checks, portChecks(c, pc)...)
	}
	return checks
}

// portChecks are those of one PC's port. Their names end in the PC's where there are several.
func portChecks(c *config.Config, pc config.PC) []Check {
	gateway := portcullisv1connect.NewGatewayClient(rpc.Client(filepath.Join(pc.RunDir, rpc.GatewaySocket)), rpc.BaseURL)
	boot := portcullisv1connect.NewBootClient(rpc.Client(filepath.Join(pc.RunDir, rpc.BootSocket)), rpc.BaseURL)
	attest := portcullisv1connect.NewAttestClient(rpc.Client(filepath.Join(c.RunDir, rpc.AttestSocket)), rpc.BaseURL)
	checks := []Check{
		{"firewall", func(context.Context) error { return tableLoaded(ruleset.IPTableOf(pc.Name)) }},
		{"gatewayd", func(ctx context.Context) error {
			_, err := gateway.GetGatewayStatus(ctx, connect.NewRequest(&v1.GetGatewayStatusRequest{}))
			return err
		}},
		{"pxed", func(ctx context.Context) error {
			_, err := boot.GetSession(ctx, connect.NewRequest(&v1.GetSessionRequest{}))
			if connect.CodeOf(err) == connect.CodeNotFound {
				return nil // no PC has booted yet
			}
			return err
		}},
		{"attestd", func(ctx context.Context) error {
			_, err := attest.GetVerdict(ctx, connect.NewRequest(&v1.GetVerdictRequest{Pc: pc.Name}))
			return err
		}},
		listens("DHCP", "udp", pc.Address, 67), listens("TFTP", "udp", pc.Address, 69),
		listens("boot files", "tcp", pc.Address, c.PXE.HTTPPort), listens("attestation", "tcp", pc.Address, c.Attest.Port),
	}
	if pc.Name != "" {
		for i := range checks {
			checks[i].Name += " " + pc.Name
		}
	}
	return checks
}

func listens(name, protocol string, own netip.Addr, port uint16) Check {
	return Check{name, func(context.Context) error {
		f, err := os.Open("/proc/net/" + protocol)
		if err != nil {
			return err
		}
		defer f.Close()
		s := bufio.NewScanner(f)
		s.Scan() // the headings
		for s.Scan() {
			if a, ok := listener(s.Text(), protocol); ok && a.Port() == port && (a.Addr() == own || a.Addr().IsUnspecified()) {
				return nil
			}
		}
		return errors.Join(fmt.Errorf("nothing listens on %s %s:%d", protocol, own, port), s.Err())
	}}
}

// States of a socket in /proc/net (include/net/tcp_states.h): a TCP listener, and
// a UDP socket that is not connected.
const (
	stateListen = "0A"
	stateClose  = "07"
)

// listener reads a line of /proc/net/tcp or udp: slot, local address, remote
// address, state. Addresses are hex words in the machine's own byte order.
func listener(line, protocol string) (netip.AddrPort, bool) {
	f := strings.Fields(line)
	if len(f) < 4 || protocol == "tcp" && f[3] != stateListen || protocol == "udp" && f[3] != stateClose {
		return netip.AddrPort{}, false
	}
	host, port, _ := strings.Cut(f[1], ":")
	h, errHost := strconv.ParseUint(host, 16, 32)
	p, errPort := strconv.ParseUint(port, 16, 16)
	if errHost != nil || errPort != nil || len(host) != 8 {
		return netip.AddrPort{}, false
	}
	var b [4]byte
	binary.NativeEndian.PutUint32(b[:], uint32(h))
	return netip.AddrPortFrom(netip.AddrFrom4(b), uint16(p)), true
}

// tableLoaded says whether the kernel has this inet table of a gatewayd.
func tableLoaded(name string) error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return err
	}
	for _, t := range tables {
		if t.Name == name {
			return nil
		}
	}
	return fmt.Errorf("no table inet %s", name)
}

// watchdogFed says whether the first process, whose open files are listed in dir,
// holds a watchdog: who holds one and does not feed it is restarted by it.
func watchdogFed(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if to, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil && strings.HasPrefix(to, "/dev/watchdog") {
			return nil
		}
	}
	return errors.New("the first process feeds no watchdog")
}
