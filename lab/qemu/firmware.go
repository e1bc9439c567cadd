package qemu

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Firmware names the way in which the PC asks for its boot.
type Firmware string

// The four ways. Each is a real firmware of real machines.
const (
	// UEFIHTTP is OVMF with PXE switched off: it goes straight to HTTP Boot.
	UEFIHTTP Firmware = "uefi-http"
	// UEFIPXE is OVMF with its own PXE stack, the card's option ROM left out.
	UEFIPXE Firmware = "uefi-pxe"
	// IPXE is OVMF with iPXE as the card's option ROM.
	IPXE Firmware = "ipxe"
	// BIOS is SeaBIOS with iPXE as the card's option ROM: kernel and initrd apart.
	BIOS Firmware = "bios"
)

// Firmwares lists all four, the preferred one first.
var Firmwares = []Firmware{UEFIHTTP, UEFIPXE, IPXE, BIOS}

// ErrFirmware is a firmware name that is none of Firmwares.
var ErrFirmware = errors.New("unknown firmware")

// ParseFirmware reads a name as the command line has it.
func ParseFirmware(s string) (Firmware, error) {
	for _, f := range Firmwares {
		if s == string(f) {
			return f, nil
		}
	}
	return "", fmt.Errorf("%w %q: use uefi-http, uefi-pxe, ipxe or bios", ErrFirmware, s)
}

// uefi tells whether the firmware is OVMF.
func (f Firmware) uefi() bool { return f != BIOS }

// flash is a pair of OVMF images: code to map, variables to copy for each machine.
type flash struct{ code, vars string }

// flashes lists where Debian's package ovmf keeps them, bookworm and trixie.
var flashes = []flash{
	{"/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"},
	{"/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"},
}

func findFlash() (flash, error) {
	for _, f := range flashes {
		if exists(f.code) && exists(f.vars) {
			return f, nil
		}
	}
	return flash{}, errors.New("qemu: no OVMF firmware found; install the package ovmf")
}

// romPaths lists where the package ipxe-qemu keeps the option ROMs.
var romPaths = []string{"/usr/lib/ipxe/qemu", "/usr/share/qemu"}

// romName is the iPXE option ROM that QEMU gives a virtio network card by itself;
// it holds a BIOS and a UEFI image. It must not be named on the command line: only
// of its default ROM does QEMU set the PCI ids to the card's, and SeaBIOS does not
// run a ROM whose ids are another's.
const romName = "efi-virtio.rom"

// findROM fails where QEMU would not find romName.
func findROM() error {
	for _, dir := range romPaths {
		if p := filepath.Join(dir, romName); exists(p) {
			return nil
		}
	}
	return fmt.Errorf("qemu: no option ROM %s found; install the package ipxe-qemu", romName)
}

// firmwareArgs is the part of the command line that differs between the four
// ways; vars is the machine's own copy of the OVMF variables.
func firmwareArgs(f Firmware, vars string) ([]string, error) {
	if !f.uefi() {
		return nil, nil
	}
	fl, err := findFlash()
	if err != nil {
		return nil, err
	}
	if err := copyFile(fl.vars, vars); err != nil {
		return nil, fmt.Errorf("qemu: OVMF variables: %w", err)
	}
	args := []string{
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + Escape(fl.code),
		"-drive", "if=pflash,format=raw,unit=1,file=" + Escape(vars),
		// One address family on this link: no minute lost on DHCPv6.
		"-fw_cfg", "name=opt/org.tianocore/IPv6PXESupport,string=no",
		"-fw_cfg", "name=opt/org.tianocore/IPv6Support,string=no",
	}
	if f == UEFIHTTP {
		args = append(args, "-fw_cfg", "name=opt/org.tianocore/IPv4PXESupport,string=no")
	}
	return args, nil
}

// romOption is what follows the card's address: an empty romfile keeps QEMU from
// putting iPXE in the place of OVMF's own network stack.
func romOption(f Firmware) (string, error) {
	if f == UEFIHTTP || f == UEFIPXE {
		return ",romfile=", nil
	}
	return "", findROM()
}

// Escape doubles commas as QEMU's option lists want it.
func Escape(s string) string { return strings.ReplaceAll(s, ",", ",,") }

func exists(p string) bool {
	_, err := os.Stat(p)
	return !errors.Is(err, fs.ErrNotExist) && err == nil
}

func copyFile(from, to string) error {
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o600)
}
