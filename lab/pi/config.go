package pi

import (
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
)

// Firmware names what starts the kernel.
type Firmware string

// The three ways.
const (
	Direct Firmware = "direct"  // our model of the Pi's bootloader; nothing is measured
	AAVMF  Firmware = "aavmf"   // UEFI for arm64: measures into the TPM, then starts the UKI
	Raspi3 Firmware = "raspi3b" // QEMU's Raspberry Pi 3 B with the SD card on its own controller; no TPM, no NIC
)

// Names of the virtio-serial ports.
const (
	CommandPort = "org.portcullis.lab"    // commands, lab/channel
	EventPort   = "org.portcullis.events" // the services' journal, JSON lines
	ModulePort  = "org.portcullis.module" // what plays a Zymbit module, outside of the guest
)

// NIC is one network port. The first is eth0 (uplink), the second eth1 (the PC's port).
type NIC struct {
	Tap string // interface in the namespace that Start runs in; "" = a cable that ends nowhere
	MAC string
}

// Config describes one machine. Name, Dir and Card are needed.
type Config struct {
	Name     string // shown in the process list
	Dir      string // sockets and logs; must exist; at most 80 bytes
	Firmware Firmware
	Card     string   // raw image, written to
	TPM      string   // directory of the TPM's state, made where missing; "" = no TPM
	Module   string   // listening socket of what plays a Zymbit module; "" = none
	NICs     []NIC    // none = two ports whose cables end nowhere
	Disks    []string // further raw images, read-only for the guest, as plugged-in disks
	Medium   string   // unix socket at which an NBD server has the card; "" = the file itself
	Resume   string   // file of Suspend: the machine goes on from there, with the same card and Config
	DTB      string   // Raspi3 only: bcm2837-rpi-3-b.dtb
	MemoryMB int      // 0 = 1024
	CPUs     int      // 0 = 2

	// Start starts a prepared command where the taps are; nil starts it here.
	Start func(*exec.Cmd) error
	// Power, where set, is told of each power-on of the machine, once it runs. It
	// must not call the machine.
	Power func(Boot)
}

// Boot is one run of the firmware.
type Boot struct {
	Number    int    // 1 = the first since Start
	Partition int    // that autoboot.txt names; 0 where none was asked
	Reason    string // power-on, guest-reset
	PIDs      map[string]int
}

// Files that a machine makes in its directory.
func ConsoleLog(dir string) string    { return filepath.Join(dir, "console.log") }
func QMPSocket(dir string) string     { return filepath.Join(dir, "qmp.sock") }
func ChannelSocket(dir string) string { return filepath.Join(dir, "lab.sock") }
func EventLog(dir string) string      { return filepath.Join(dir, "events.log") }

func consoleSocket(dir string) string { return filepath.Join(dir, "console.sock") }
func tpmSocket(dir string) string     { return filepath.Join(dir, "swtpm.sock") }

// check fills in what is left out.
func (c *Config) check() error {
	if c.Name == "" || c.Dir == "" || c.Card == "" {
		return errors.New("pi: a machine needs a name, a directory and a card")
	}
	if len(c.Dir) > 80 {
		return fmt.Errorf("pi: directory %s is too long for unix sockets", c.Dir)
	}
	switch c.Firmware {
	case "":
		c.Firmware = Direct
	case Direct, AAVMF:
	case Raspi3:
		if c.TPM != "" || c.Module != "" || len(c.NICs) != 0 || len(c.Disks) != 0 || c.Medium != "" || c.DTB == "" {
			return errors.New("pi: raspi3b needs a device tree and has no TPM, no module, no network card and no other disk")
		}
	default:
		return fmt.Errorf("pi: unknown firmware %q", c.Firmware)
	}
	if c.MemoryMB == 0 {
		c.MemoryMB = 1024
	}
	if c.CPUs == 0 {
		c.CPUs = 2
	}
	if len(c.NICs) == 0 && c.Firmware != Raspi3 {
		c.NICs = []NIC{{MAC: "52:54:00:70:00:00"}, {MAC: "52:54:00:70:00:01"}}
	}
	if c.Start == nil {
		c.Start = func(cmd *exec.Cmd) error { return cmd.Start() }
	}
	if c.Power == nil {
		c.Power = func(Boot) {}
	}
	return nil
}
