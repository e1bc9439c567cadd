package probe

import (
	"bytes"
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"portcullis/attestserver/protocol"
)

func (h Host) pci() (out []protocol.Component) {
	for _, d := range h.list("bus/pci/devices/*") {
		out = append(out, protocol.Component{Class: protocol.HwPCI, Slot: filepath.Base(d),
			Value: join(d, "vendor", "device", "subsystem_vendor", "subsystem_device", "class", "revision")})
	}
	return out
}

func (h Host) usb() (out []protocol.Component) {
	for _, d := range h.list("bus/usb/devices/*") {
		if optional(d, "idVendor") == "" {
			continue // an interface of a device
		}
		out = append(out, protocol.Component{Class: protocol.HwUSB, Slot: usbSlot(d),
			Value: join(d, "idVendor", "idProduct", usbRelease(d), "serial")})
	}
	return out
}

// usbRelease is the file with a device's release. That of a root hub is the
// kernel's own version and says nothing of the hardware.
func usbRelease(dir string) string {
	if strings.HasPrefix(filepath.Base(dir), "usb") {
		return "bDeviceClass"
	}
	return "bcdDevice"
}

var (
	pciAddress = regexp.MustCompile(`^[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]$`)
	usbBus     = regexp.MustCompile(`^usb[0-9]+$`)
)

// usbSlot is where a USB device is: the PCI function of its controller, the root
// hub's product (2 for USB 2, 3 for USB 3) and the ports. Buses are numbered in
// the order in which drivers find them, which differs from boot to boot, so
// their numbers are used only where no controller is known.
func usbSlot(dir string) string {
	name := filepath.Base(dir)
	path, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return name
	}
	controller, hub := "", ""
	for p := path; len(p) > 1; p = filepath.Dir(p) {
		switch base := filepath.Base(p); {
		case hub == "" && usbBus.MatchString(base):
			hub = strings.TrimLeft(optional(p, "idProduct"), "0")
		case hub != "" && pciAddress.MatchString(base):
			controller = base
		}
		if controller != "" {
			break
		}
	}
	if controller == "" {
		return name
	}
	_, ports, _ := strings.Cut(name, "-") // empty for the root hub itself
	return strings.TrimRight(controller+" usb"+hub+" "+ports, " ")
}

// thunderbolt are routers: the host's own, and devices with their routers.
func (h Host) thunderbolt() (out []protocol.Component) {
	for _, d := range h.list("bus/thunderbolt/devices/*") {
		if optional(d, "vendor") == "" {
			continue // a domain, a retimer or a service
		}
		out = append(out, protocol.Component{Class: protocol.HwThunderbolt, Slot: filepath.Base(d),
			Value: join(d, "vendor", "device", "vendor_name", "device_name", "unique_id")})
	}
	return out
}

// disks are the block devices with hardware behind them, each by its serial
// number where it has one: their names depend on which was found first.
func (h Host) disks() (out []protocol.Component) {
	seen := map[string]bool{}
	for _, d := range h.list("block/*") {
		if _, err := os.Stat(filepath.Join(d, "device")); err != nil {
			continue // loop, device-mapper, RAM disk
		}
		serial := cmp.Or(optional(d, "device/serial"), optional(d, "serial"), scsiSerial(d), optional(d, "wwid"), optional(d, "device/wwid"))
		slot := cmp.Or(clean(serial), filepath.Base(d))
		if seen[slot] { // two paths to one disk, or two disks that lie
			slot += " " + filepath.Base(d)
		}
		seen[slot] = true
		size := "size"
		if optional(d, "removable") == "1" {
			size = "removable" // the medium comes and goes
		}
		out = append(out, protocol.Component{Class: protocol.HwBlock, Slot: slot,
			Value: join(d, size, "device/vendor", "device/model", "wwid", "device/wwid")})
		if v := cmp.Or(optional(d, "device/firmware_rev"), optional(d, "device/rev")); v != "" {
			out = append(out, protocol.Component{Class: protocol.HwFirmware, Slot: protocol.HwBlock + " " + slot, Value: clean(v)})
		}
	}
	return out
}

// scsiSerial reads the unit serial number page of a SCSI or SATA disk (SPC-4
// 7.8.15): four bytes of header, the last of them the length, then ASCII.
func scsiSerial(dir string) string {
	b, err := read(dir, "device/vpd_pg80")
	if err != nil || len(b) < 4 || b[1] != 0x80 {
		return ""
	}
	b = b[4:]
	return strings.ToValidUTF8(string(bytes.Trim(b[:min(len(b), 252)], " \x00")), "?")
}

func (h Host) nics() (out []protocol.Component) {
	links, err := h.Links()
	if err != nil {
		return nil
	}
	for _, l := range links {
		if dev := h.device(l.Name); dev != "" && l.Kind == "" {
			out = append(out, protocol.Component{Class: protocol.HwNIC, Slot: cmp.Or(l.Permanent, l.MAC), Value: dev})
		}
	}
	return out
}
