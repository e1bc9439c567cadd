package qemu

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"sync"
	"time"
)

// ChannelPort is the name of the virtio-serial port of the lab's command channel.
const ChannelPort = "org.portcullis.lab"

// HotplugBus is a free PCIe root port: devices can be added there at run time.
const HotplugBus = "hotplug0"

// Config describes one machine. Every field but CPU, TPM, Strings, Hardware and Start is needed.
type Config struct {
	Name     string // shown in the process list
	Dir      string // sockets, variables and logs; must exist
	Firmware Firmware
	MAC      string // of the network card
	Tap      string // interface name, in the namespace Start runs in
	MemoryMB int    // 1024 .. 65536
	CPUs     int    // 1 .. 64
	CPU      string // model, as QEMU's option -cpu takes it; "" = all that the emulator knows
	TPM      bool   // a TPM 2.0 by swtpm
	// Strings are OEM strings of the SMBIOS table (type 11), which the owner of a
	// machine can set and systemd-stub listens to.
	Strings  []string
	Hardware Hardware
	// Start starts a prepared command where the tap is; nil starts it here.
	Start func(*exec.Cmd) error
}

// Hardware is what differs from the machine as it always is. The zero value is
// that machine.
type Hardware struct {
	SMBIOS []string // tables as -smbios takes them, for instance type=1,serial=4711
	Disk   string   // serial number of one more, empty disk; "" = none
	Other  []string // devices as -device takes them
}

// args are the options of QEMU for h.
func (h Hardware) args() (out []string) {
	for _, t := range h.SMBIOS {
		out = append(out, "-smbios", t)
	}
	if h.Disk != "" {
		out = append(out, "-blockdev", "driver=null-co,node-name=extra0,size=16777216,read-zeroes=on",
			"-device", "virtio-blk-pci,drive=extra0,serial="+Escape(h.Disk))
	}
	for _, d := range h.Other {
		out = append(out, "-device", d)
	}
	return out
}

// SerialLog, QMPSocket and ChannelSocket are the files a machine makes in dir.
func SerialLog(dir string) string     { return filepath.Join(dir, "serial.log") }
func QMPSocket(dir string) string     { return filepath.Join(dir, "qmp.sock") }
func ChannelSocket(dir string) string { return filepath.Join(dir, "lab.sock") }

// Machine is a running PC.
type Machine struct {
	cfg  Config
	cmd  *exec.Cmd
	tpm  *TPM
	qmp  *QMP
	done chan struct{}
	err  error
	once sync.Once
}

// Args returns the whole command line of QEMU for cfg, without the program's
// name, and writes the machine's copy of the firmware variables.
func Args(cfg Config) ([]string, error) {
	fw, err := firmwareArgs(cfg.Firmware, filepath.Join(cfg.Dir, "vars.fd"))
	if err != nil {
		return nil, err
	}
	rom, err := romOption(cfg.Firmware)
	if err != nil {
		return nil, err
	}
	cpu := cfg.CPU
	if cpu == "" {
		cpu = cpuModel
	}
	args := []string{
		"-name", "portcullis-" + cfg.Name, "-nodefaults", "-no-user-config", "-display", "none",
		"-machine", "q35", "-accel", "tcg,thread=multi",
		"-cpu", cpu, "-smp", strconv.Itoa(cfg.CPUs), "-m", strconv.Itoa(cfg.MemoryMB),
		"-netdev", "tap,id=net0,script=no,downscript=no,ifname=" + Escape(cfg.Tap),
		"-device", "virtio-net-pci,netdev=net0,bootindex=1,mac=" + cfg.MAC + rom,
		"-device", "virtio-rng-pci",
		"-device", "pcie-root-port,chassis=1,id=" + HotplugBus,
		"-chardev", "file,id=serial0,append=on,path=" + Escape(SerialLog(cfg.Dir)), "-serial", "chardev:serial0",
		"-chardev", "socket,id=lab0,server=on,wait=off,path=" + Escape(ChannelSocket(cfg.Dir)),
		"-device", "virtio-serial-pci", "-device", "virtserialport,chardev=lab0,name=" + ChannelPort,
		"-qmp", "unix:" + Escape(QMPSocket(cfg.Dir)) + ",server=on,wait=off",
	}
	args = append(args, fw...)
	args = append(args, cfg.Hardware.args()...)
	if cfg.TPM {
		args = append(args, tpmArgs(cfg.Dir)...)
	}
	for _, s := range cfg.Strings {
		args = append(args, "-smbios", "type=11,value="+Escape(s))
	}
	return args, nil
}

// Start powers the machine on. The context bounds the start only.
func Start(ctx context.Context, cfg Config) (*Machine, error) {
	prog, err := Program(ctx)
	if err != nil {
		return nil, err
	}
	args, err := Args(cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Start == nil {
		cfg.Start = func(c *exec.Cmd) error { return c.Start() }
	}
	for _, p := range []string{QMPSocket(cfg.Dir), ChannelSocket(cfg.Dir)} {
		os.Remove(p)
	}
	m := &Machine{cfg: cfg, done: make(chan struct{})}
	if cfg.TPM {
		if m.tpm, err = startTPM(ctx, cfg.Dir, cfg.Start); err != nil {
			return nil, err
		}
	}
	log, err := os.OpenFile(filepath.Join(cfg.Dir, "qemu.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.tpm.Stop()
		return nil, fmt.Errorf("qemu: log: %w", err)
	}
	defer log.Close()
	m.cmd = exec.Command(prog, args...)
	m.cmd.Stdout, m.cmd.Stderr = log, log
	m.cmd.SysProcAttr = OwnGroup()
	if err := cfg.Start(m.cmd); err != nil {
		m.tpm.Stop()
		return nil, fmt.Errorf("qemu: starting %s: %w", prog, err)
	}
	go func() {
		m.err = m.cmd.Wait()
		close(m.done)
	}()
	if m.qmp, err = DialQMP(ctx, QMPSocket(cfg.Dir), m.done); err != nil {
		m.Kill()
		return nil, fmt.Errorf("%w; QEMU said: %s", err, tail(filepath.Join(cfg.Dir, "qemu.log")))
	}
	return m, nil
}

// PIDs returns the process ids of the machine: QEMU's, then swtpm's if there is one.
func (m *Machine) PIDs() map[string]int {
	pids := map[string]int{"qemu": m.cmd.Process.Pid}
	if m.tpm != nil {
		pids["swtpm"] = m.tpm.PID()
	}
	return pids
}

// QMP returns the control connection.
func (m *Machine) QMP() *QMP { return m.qmp }

// Done is closed when QEMU has ended.
func (m *Machine) Done() <-chan struct{} { return m.done }

// Kill ends the machine as a cut power cord does, and its TPM, and waits for both.
func (m *Machine) Kill() {
	m.once.Do(func() {
		if m.qmp != nil {
			m.qmp.Close()
		}
		m.cmd.Process.Kill()
		<-m.done
		m.tpm.Stop()
	})
}

// Reset presses the reset button.
func (m *Machine) Reset(ctx context.Context) error {
	_, err := m.qmp.Execute(ctx, "system_reset", nil)
	return err
}

// AddNIC plugs a second virtio network card into the running machine. Its other
// end is a hub with nobody on it.
func (m *Machine) AddNIC(ctx context.Context, mac string) error {
	if _, err := m.qmp.Execute(ctx, "netdev_add", map[string]any{"type": "hubport", "id": "net1", "hubid": 1}); err != nil {
		return err
	}
	_, err := m.qmp.Execute(ctx, "device_add", map[string]any{
		"driver": "virtio-net-pci", "id": "nic1", "netdev": "net1", "mac": mac, "bus": HotplugBus, "romfile": "",
	})
	return err
}

// Plug adds a device to the running machine; disk is what lies behind it, arguments
// of blockdev-add in QEMU's machine protocol, and may be nil.
func (m *Machine) Plug(ctx context.Context, disk, device map[string]any) error {
	if disk != nil {
		if _, err := m.qmp.Execute(ctx, "blockdev-add", disk); err != nil {
			return err
		}
	}
	_, err := m.qmp.Execute(ctx, "device_add", device)
	return err
}

// Unplug pulls a device out of the running machine. One on PCI stays until its kernel
// lets it go, one on USB is gone at once.
func (m *Machine) Unplug(ctx context.Context, id string) error {
	_, err := m.qmp.Execute(ctx, "device_del", map[string]any{"id": id})
	return err
}

var versionLine = regexp.MustCompile(`version (\d+)\.(\d+)`)

// Program finds the emulator of the PC.
func Program(ctx context.Context) (string, error) {
	return Find(ctx, "qemu-system-x86_64", "qemu-system-x86")
}

// Find finds the emulator called name, which is in the Debian package pkg, and
// refuses one older than 10.
func Find(ctx context.Context, name, pkg string) (string, error) {
	prog, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("qemu: %s not found; install the package %s", name, pkg)
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, prog, "--version").Output()
	if err != nil {
		return "", fmt.Errorf("qemu: asking %s for its version: %w", prog, err)
	}
	v := versionLine.FindSubmatch(out)
	if v == nil {
		return "", fmt.Errorf("qemu: %s names no version: %q", prog, out)
	}
	if major, _ := strconv.Atoi(string(v[1])); major < 10 {
		return "", fmt.Errorf("qemu: version %s.%s is too old, 10 is needed (on Debian 12: %s from bookworm-backports)", v[1], v[2], pkg)
	}
	return prog, nil
}

// tail returns the last bytes of a log for an error message.
func tail(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	if len(b) > 600 {
		b = b[len(b)-600:]
	}
	return string(b)
}

// cpuModel has everything the emulator knows but the fast string moves: QEMU
// runs them byte by byte, and a kernel with init_on_free=1 clears all memory
// with them at boot (about twice the kernel's time for 2 GiB).
const cpuModel = "max,-erms,-fsrm"
