package protocol

import (
	"errors"
	"regexp"
)

// Classes of hardware components.
const (
	HwDMI   = "dmi"   // strings of the firmware's tables
	HwCPU   = "cpu"   // model and count
	HwPCI   = "pci"   // functions on the PCI buses
	HwDIMM  = "dimm"  // memory devices of the firmware's tables
	HwUSB   = "usb"   // devices on USB
	HwBlock = "block" // disks
	HwNIC   = "nic"   // network hardware, by permanent MAC

	HwFirmware    = "firmware"    // versions of programs inside parts: disks
	HwThunderbolt = "thunderbolt" // routers on Thunderbolt and USB4
	HwEFI         = "efi"         // Secure Boot's switches, digests of its keys
	HwACPI        = "acpi"        // digests of the firmware's tables
	HwMemmap      = "memmap"      // digest of the memory map that the firmware gave
	HwCache       = "cache"       // caches of the first CPU
	HwTSC         = "tsc"         // rate of the time stamp counter
	HwPUF         = "puf-sim"     // a simulated DRAM PUF, an experiment: no agent sends it
)

// Slots with a meaning of their own.
const (
	SlotMicrocode = "microcode" // of class cpu
	SlotKHz       = "khz"       // of class tsc: a decimal number
	SlotResponse  = "response"  // of class puf-sim: hex
)

// Component is one part of the machine.
type Component struct {
	Class string `json:"class"`
	Slot  string `json:"slot"` // where it is: a bus address, a table entry, a name
	Value string `json:"value"`
}

// HwData is the answer of op hw.
type HwData struct {
	CPUClass   string      `json:"cpu_class"`
	MemoryKiB  uint64      `json:"memory_kib"` // MemTotal
	UptimeMs   int64       `json:"uptime_ms"`
	Components []Component `json:"components"` // sorted by class and slot
}

var cpuClass = regexp.MustCompile(`^[a-z0-9.-]{1,128}$`)

// Check bounds the lists and strings.
func (d *HwData) Check() error {
	if !cpuClass.MatchString(d.CPUClass) {
		return errors.New("cpu_class is not 1 to 128 of a-z, 0-9, dot and dash")
	}
	if d.UptimeMs < 0 {
		return errors.New("negative uptime")
	}
	if err := atMost("components", len(d.Components), MaxComponents); err != nil {
		return err
	}
	for _, c := range d.Components {
		if err := short("component", c.Class, c.Slot, c.Value); err != nil {
			return err
		}
	}
	return nil
}
