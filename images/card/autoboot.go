package card

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
)

// Autoboot is what the firmware reads in autoboot.txt
// (Raspberry Pi documentation, "autoboot.txt").
type Autoboot struct {
	Partition    int  // started normally
	TryPartition int  // started once after a reboot with the tryboot flag; 0 = Partition
	TrybootAB    bool // the tryboot flag chooses a partition, not other file names
}

// EncodeAutoboot returns autoboot.txt with active as the slot to start: one
// sector, in which only two digits differ between the slots, so that a torn write
// of it still starts one of the two.
func EncodeAutoboot(active Slot) []byte {
	b := fmt.Appendf(nil, "[all]\ntryboot_a_b=1\nboot_partition=%d\n[tryboot]\nboot_partition=%d\n",
		active.BootPartition(), active.Other().BootPartition())
	return append(b, bytes.Repeat([]byte{'\n'}, AutobootSize-len(b))...)
}

// ParseAutoboot reads a file by the firmware's rules: at most 512 bytes, sections
// [all], [none] and [tryboot], "#" comments, later lines win, keys that it does
// not know are passed over. It is refused where nothing is started normally.
func ParseAutoboot(b []byte) (Autoboot, error) {
	if len(b) > AutobootSize {
		return Autoboot{}, refuse(ReasonAutoboot, "%d bytes, the firmware reads %d", len(b), AutobootSize)
	}
	var a Autoboot
	section := "all"
	for n, line := range strings.Split(string(b), "\n") {
		line, _, _ = strings.Cut(strings.TrimSuffix(line, "\r"), "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		if strings.HasPrefix(line, "[") {
			if !strings.HasSuffix(line, "]") {
				return Autoboot{}, refuse(ReasonAutoboot, "line %d: %.40q is no section", n+1, line)
			}
			section = line[1 : len(line)-1]
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !ok {
			return Autoboot{}, refuse(ReasonAutoboot, "line %d: %.40q is not key=value", n+1, line)
		}
		if err := a.set(section, strings.TrimSpace(key), strings.TrimSpace(value)); err != nil {
			return Autoboot{}, refuse(ReasonAutoboot, "line %d: %v", n+1, err)
		}
	}
	if a.Partition == 0 {
		return Autoboot{}, refuse(ReasonAutoboot, "no boot_partition for a normal start")
	}
	return a, nil
}

func (a *Autoboot) set(section, key, value string) error {
	if key != "boot_partition" && key != "tryboot_a_b" || section != "all" && section != "tryboot" {
		return nil
	}
	n, err := strconv.Atoi(value)
	if err != nil || n < 0 || n > 127 {
		return fmt.Errorf("%s=%.20q is not a number from 0 to 127", key, value)
	}
	switch {
	case key == "tryboot_a_b" && section == "all":
		a.TrybootAB = n == 1
	case key == "boot_partition" && section == "all":
		// A value for all counts in a tryboot too, unless that section says another.
		a.Partition = n
	case key == "boot_partition":
		a.TryPartition = n
	}
	return nil
}

// Boot is the partition that the firmware starts.
func (a Autoboot) Boot(tryboot bool) int {
	if tryboot && a.TryPartition != 0 {
		return a.TryPartition
	}
	return a.Partition
}

// Slot is the slot that is started normally.
func (a Autoboot) Slot() (Slot, error) {
	for _, s := range []Slot{SlotA, SlotB} {
		if s.BootPartition() == a.Partition {
			return s, nil
		}
	}
	return "", refuse(ReasonAutoboot, "boot_partition=%d is no slot", a.Partition)
}

// bootloaderPartition is where the Pi's bootloader says which partition it
// started (documentation of the device tree's /chosen/bootloader): one cell.
const bootloaderPartition = "chosen/bootloader/partition"

// CheckFirmware compares slot with what the firmware says it started. dt is
// /proc/device-tree. Firmware that says nothing (QEMU, an old EEPROM) is no error.
func CheckFirmware(slot Slot, dt fs.FS) error {
	b, err := fs.ReadFile(dt, bootloaderPartition)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return refuse(ReasonSlotPartition, "%v", err)
	}
	if len(b) != 4 {
		return refuse(ReasonSlotPartition, "%s has %d bytes, a cell has 4", bootloaderPartition, len(b))
	}
	if got := binary.BigEndian.Uint32(b); got != uint32(slot.BootPartition()) {
		return refuse(ReasonSlotPartition, "the firmware started partition %d, slot %s is partition %d", got, slot, slot.BootPartition())
	}
	return nil
}
