package scenario

import "portcullis/lab/qemu"

// Plays returns every play in the order in which they are best run.
func Plays() []Play {
	return []Play{
		{Name: "http", Firmware: qemu.UEFIHTTP, Scenes: []Scene{trusted(qemu.UEFIHTTP)}},
		{Name: "pxe", Firmware: qemu.UEFIPXE, Scenes: []Scene{trusted(qemu.UEFIPXE)}},
		{Name: "ipxe", Firmware: qemu.IPXE, Scenes: []Scene{trusted(qemu.IPXE)}},
		{Name: "bios", Firmware: qemu.BIOS, Scenes: []Scene{trusted(qemu.BIOS)}},
	}
}
