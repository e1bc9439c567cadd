package probe

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"portcullis/attestserver/protocol"
)

// dmiStrings are the strings that the kernel takes from the firmware's tables.
var dmiStrings = []string{"bios_vendor", "bios_version", "bios_date", "bios_release", "ec_firmware_release",
	"sys_vendor", "product_name", "product_version", "product_serial", "product_uuid", "product_sku", "product_family",
	"board_vendor", "board_name", "board_version", "board_serial", "board_asset_tag",
	"chassis_vendor", "chassis_type", "chassis_version", "chassis_serial", "chassis_asset_tag"}

func (h Host) dmi() (out []protocol.Component) {
	for _, n := range dmiStrings {
		if v := optional(h.Sys, "class/dmi/id", n); v != "" {
			out = append(out, protocol.Component{Class: protocol.HwDMI, Slot: n, Value: v})
		}
	}
	return out
}

// dimms are the memory modules that the firmware lists. The kernel keeps the
// whole table, whatever modules are loaded.
func (h Host) dimms() (out []protocol.Component) {
	b, err := read(h.Sys, "firmware/dmi/tables/DMI")
	if err != nil {
		return nil
	}
	for i, m := range parseDIMMs(b) {
		// Boards leave locators empty or give the same one twice.
		out = append(out, protocol.Component{Class: protocol.HwDIMM, Slot: fmt.Sprintf("%d %s", i, m.locator), Value: m.String()})
	}
	return out
}

// maxACPI bounds what is read of one table.
const maxACPI = 4 << 20

// acpi are the tables by their digests. Those that the running system changes or
// adds (data, dynamic) are in directories and are left out.
func (h Host) acpi() (out []protocol.Component) {
	for _, f := range h.list("firmware/acpi/tables/*") {
		st, err := os.Stat(f)
		if err != nil || !st.Mode().IsRegular() || st.Size() > maxACPI {
			continue
		}
		b, err := read(f)
		if err != nil {
			continue
		}
		out = append(out, protocol.Component{Class: protocol.HwACPI, Slot: filepath.Base(f), Value: digest(b)})
	}
	return out
}

// memmap is the memory map as the firmware gave it (e820, or EFI's), before the
// kernel changed anything.
func (h Host) memmap() []protocol.Component {
	dirs := h.list("firmware/memmap/*")
	if len(dirs) == 0 {
		return nil
	}
	slices.SortFunc(dirs, func(a, b string) int {
		x, _ := strconv.Atoi(filepath.Base(a))
		y, _ := strconv.Atoi(filepath.Base(b))
		return cmp.Or(cmp.Compare(x, y), strings.Compare(a, b))
	})
	var text strings.Builder
	for _, d := range dirs {
		fmt.Fprintln(&text, join(d, "start", "end", "type"))
	}
	return []protocol.Component{{Class: protocol.HwMemmap, Slot: "firmware", Value: digest([]byte(text.String()))}}
}
