//go:build soak

package lab

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"portcullis/internal/netns"
	"portcullis/lab/channel"
	"portcullis/lab/qemu"
	"portcullis/lab/wire"
	"portcullis/lab/world"
)

// A rack: one namespace is the Pi, with a port for each of two PCs in QEMU, a gatewayd and a
// pxed for each port, and one attestd for both. The ports are taps with names of VLAN
// interfaces: the kernel of the tests has no 802.1Q.
type rackLab struct {
	t     *testing.T
	ctx   context.Context
	dir   string
	built *Built
	gw    *netns.Host
	log   *Log
	pcs   []*rackPC
}

type rackPC struct {
	name, port, mac string
	own             netip.Prefix // ours on its port
	group           string       // of NFLOG
	dir             string
	machine         *qemu.Machine
}

// rackTime bounds the whole test: two boots under emulation.
const rackTime = 15 * time.Minute

func newRackLab(t *testing.T) *rackLab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), rackTime)
	t.Cleanup(cancel)
	built, err := testBuilder.Build(ctx, func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	hosts := netns.ForTest(t, "gw", "net")
	k := &rackLab{t: t, ctx: ctx, dir: t.TempDir(), built: built, gw: hosts[0], log: NewLog(nil), pcs: []*rackPC{
		{name: "rack-1", port: "lan.10", mac: "52:54:00:12:34:01", own: netip.MustParsePrefix("10.77.1.1/24"), group: "81"},
		{name: "rack-2", port: "lan.20", mac: "52:54:00:12:34:02", own: netip.MustParsePrefix("10.77.2.1/24"), group: "82"}}}
	k.wires(hosts[1])
	k.configure()
	k.serve(hosts[1])
	return k
}

func (k *rackLab) must(err error) {
	k.t.Helper()
	if err != nil {
		k.t.Fatal(err)
	}
}

// wires lays the ports and the way to the world, under the static deny of a rack.
func (k *rackLab) wires(world *netns.Host) {
	k.t.Helper()
	for _, h := range []*netns.Host{k.gw, world} {
		k.must(h.Sysctl("net.ipv6.conf.default.addr_gen_mode", "1"))
	}
	k.must(netns.Veth(k.gw, wire.Uplink, world, wire.NetPort))
	k.must(k.gw.Address(wire.Uplink, wire.UpAddress))
	k.must(world.Address(wire.NetPort, wire.World))
	k.must(world.Sysctl("net.ipv6.conf."+wire.NetPort+".dad_transmits", "0"))
	k.must(world.Address(wire.NetPort, wire.World6))
	k.must(world.Route(netip.MustParsePrefix("10.77.0.0/16"), wire.UpAddress.Addr()))
	_, err := k.gw.Run(k.ctx, "nft", "-D", "port=lan*", "-f", filepath.Join(k.built.Repository, "systemd", "portcullis-deny-rack.nft"))
	k.must(err)
	for _, pc := range k.pcs {
		k.must(k.gw.Tap(pc.port))
		k.must(k.gw.Address(pc.port, pc.own))
	}
	// Nothing but the tables keeps the ports, and the world, apart.
	k.must(k.gw.Sysctl("net.ipv4.ip_forward", "1"))
}

// configure writes the file of each port, and attestd's.
func (k *rackLab) configure() {
	k.t.Helper()
	s := defaultSettings()
	s.ImageDir, s.ReleaseKey, s.MeanGap, s.Deadline, s.BanAfter = k.built.Image, k.built.ReleaseKey, 4*time.Second, 20*time.Second, 1000
	list := ""
	for _, pc := range k.pcs {
		text, err := render(values{s, filepath.Join(k.dir, "run"), filepath.Join(k.dir, "state"), pc.port, pc.own.String(), pc.own.Addr().Next().String(), pc.mac,
			wire.Uplink, k.built.GatewayKey, "[]", ""})
		k.must(err)
		text = strings.Replace(text, "nflog_group: 77", "nflog_group: "+pc.group, 1)
		text = strings.Replace(text, `operator_keys: [""]`, "operator_keys: []", 1)
		k.must(os.WriteFile(k.file(pc.name+".yaml"), []byte(text), 0o600))
		list += fmt.Sprintf("    - {name: %s, address: %s, mac: %q}\n", pc.name, pc.own.Addr(), pc.mac)
		if pc == k.pcs[0] {
			text = strings.Replace(text, "\nattest:\n", "\nattest:\n  pcs:\nLIST", 1)
			k.must(os.WriteFile(k.file("portcullis.yaml"), []byte(text), 0o600))
		}
	}
	b, err := os.ReadFile(k.file("portcullis.yaml"))
	k.must(err)
	k.must(os.WriteFile(k.file("portcullis.yaml"), []byte(strings.Replace(string(b), "LIST", list, 1)), 0o600))
}

func (k *rackLab) file(name string) string { return filepath.Join(k.dir, name) }

// serve starts the services, each once, in the order of their units.
func (k *rackLab) serve(net *netns.Host) {
	k.t.Helper()
	k.start("world", net, "portcullis", "lab", "world", "--control", k.file("world.sock"))
	for _, name := range []string{"gatewayd", "pxed"} {
		for _, pc := range k.pcs {
			k.start(name+"@"+pc.name, k.gw, name, "--config", k.file(pc.name+".yaml"), "--pc", pc.name)
		}
	}
	k.start("attestd", k.gw, "attestd", "--config", k.file("portcullis.yaml"))
}

func (k *rackLab) start(name string, h *netns.Host, program string, args ...string) {
	k.t.Helper()
	d := &daemon{name: name, path: filepath.Join(k.built.Bin, program), args: args, start: h.Start, log: k.file(name + ".log"), note: func(process) {},
		event: func(what string, f map[string]any) {
			k.log.Add(Event{Time: time.Now(), Name: what, Source: "lab", Fields: f})
		}}
	mark := k.log.Mark()
	ctx, cancel := context.WithCancel(k.ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Follow(ctx, d.log, func(line []byte) {
			if e, ok := ParseEvent(line, name); ok {
				k.log.Add(e)
			}
		})
	}()
	k.must(d.run())
	k.t.Cleanup(func() { d.stop(); cancel(); <-ended })
	ready, cancelReady := context.WithTimeout(k.ctx, 30*time.Second)
	defer cancelReady()
	k.must(waitReady(ready, k.log, mark, name))
}

// power switches a PC on.
func (k *rackLab) power(pc *rackPC) {
	k.t.Helper()
	pc.dir = k.file(pc.name)
	k.must(os.MkdirAll(pc.dir, 0o700))
	var err error
	pc.machine, err = qemu.Start(k.ctx, qemu.Config{Name: pc.name, Dir: pc.dir, Firmware: qemu.UEFIHTTP, MAC: pc.mac, Tap: pc.port, MemoryMB: 2048, CPUs: 2, Start: k.gw.Start})
	k.must(err)
	k.t.Cleanup(func() { pc.machine.Kill() })
}

// until waits for an event of attestd about a PC.
func (k *rackLab) until(mark int, pc *rackPC, name, key, value string) Event {
	k.t.Helper()
	e, err := k.log.Wait(k.ctx, mark, func(e Event) bool {
		return e.Source == "attestd" && e.Name == name && e.Text("pc") == pc.name && e.Text(key) == value
	})
	if err != nil {
		for _, e := range k.log.Since(0) {
			if e.Name != "evidence" && e.Name != "challenge" {
				k.t.Logf("%s %s %v", e.Source, e.Name, e.Fields)
			}
		}
		if pc.dir != "" {
			k.t.Logf("%s's console: %s", pc.name, lastLine(qemu.SerialLog(pc.dir)))
		}
		k.t.Fatalf("%s: no event %s with %s %s: %v", pc.name, name, key, value, err)
	}
	return e
}

func (k *rackLab) exec(pc *rackPC, argv ...string) channel.Response {
	k.t.Helper()
	r, err := channel.Run(k.ctx, qemu.ChannelSocket(pc.dir), channel.Request{Argv: argv})
	k.must(err)
	return r
}

// reaches tells whether a PC gets an answer of the world's web server.
func (k *rackLab) reaches(pc *rackPC) bool {
	k.t.Helper()
	r := k.exec(pc, "/usr/lib/portcullis/hpc-lab", "send", "tcp", "203.0.113.10:80", "GET")
	return r.Exit == 0 && string(r.Stdout) == world.WebText
}

// Two PCs of a rack are trusted by one attestd, each through its own gatewayd and pxed; the
// one that is tampered with is quarantined, and the other one's grant and trust go on.
func TestRackOfTwoPCs(t *testing.T) {
	k := newRackLab(t)
	one, two := k.pcs[0], k.pcs[1]
	for _, pc := range k.pcs { // one after the other: two boots at once are twice as long
		mark, began := k.log.Mark(), time.Now()
		k.power(pc)
		k.until(mark, pc, "verdict", "state", "trusted")
		t.Logf("%s is trusted %s after its power came on", pc.name, time.Since(began).Round(time.Second))
		if k.reaches(pc) {
			t.Errorf("%s reaches the world without a grant", pc.name)
		}
		out, err := k.gw.Run(k.ctx, filepath.Join(k.built.Bin, "portcullis"), "grant", "add", "--run-dir", k.file("run"), "--pc", pc.name, "--to", "203.0.113.10:80/tcp",
			"--for", "1h", "--task", "rack")
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if !k.reaches(pc) {
			t.Fatalf("%s does not reach what it was granted", pc.name)
		}
	}
	// Neither speaks to the other, nor to the Pi's address on the other's port.
	for _, to := range []string{"10.77.2.2:7", "10.77.2.1:80"} {
		if r := k.exec(one, "/usr/lib/portcullis/hpc-lab", "send", "tcp", to, "x"); r.Exit == 0 {
			t.Errorf("%s reaches %s: %q", one.name, to, r.Stdout)
		}
	}
	mark := k.log.Mark()
	if r := k.exec(two, "modprobe", "dummy"); r.Exit != 0 {
		t.Fatalf("modprobe: %s", r.Stderr)
	}
	k.until(mark, two, "verdict", "state", "quarantined")
	k.until(mark, two, "quarantine.enforced", "pc", two.name)
	if k.reaches(two) {
		t.Error("the quarantined PC reaches the world")
	}
	after := k.log.Mark()
	for range 3 { // good answers of the other, after that
		e := k.until(after, one, "evidence", "pc", one.name)
		after = k.log.Mark()
		if e.Text("session") == "" {
			t.Errorf("evidence %v", e.Fields)
		}
	}
	if !k.reaches(one) {
		t.Error("the other PC lost its grant")
	}
	for _, e := range k.log.Since(mark) {
		if e.Source == "attestd" && e.Text("pc") == one.name && (e.Name == "finding" && e.Text("class") != "info" || e.Name == "verdict" && e.Text("state") != "trusted") {
			t.Errorf("of the PC that runs on: %s %v", e.Name, e.Fields)
		}
	}
	for pc, want := range map[*rackPC]string{one: "TRUSTED", two: "QUARANTINED"} {
		c := exec.CommandContext(k.ctx, filepath.Join(k.built.Bin, "portcullis"), "status", "--json", "--run-dir", k.file("run"), "--pc", pc.name)
		out, _ := c.CombinedOutput() // its exit code says whether the PC is trusted
		if !strings.Contains(strings.ToUpper(string(out)), want) || (c.ProcessState.ExitCode() == 0) != (pc == one) {
			t.Errorf("status of %s: exit %d: %s", pc.name, c.ProcessState.ExitCode(), out)
		}
	}
}
