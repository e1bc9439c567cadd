package tamper

import (
	"context"
	"fmt"

	"portcullis/lab"
)

// plug plugs a device into a running PC.
func plug(disk map[string]any, device map[string]any) func(context.Context, *lab.Lab) error {
	return func(ctx context.Context, l *lab.Lab) error { return l.PC().Plug(ctx, disk, device) }
}

// emptyDisk is a disk without content.
func emptyDisk(name string) map[string]any {
	return map[string]any{"driver": "null-co", "node-name": name, "size": 16 << 20, "read-zeroes": true}
}

// keyboard is QEMU's name of a part that the PC with USB always has.
const keyboard = "keyboard0"

// stick plugs in a stick with an empty disk. It has done so when the PC's
// kernel has found it.
func stick(n int) func(context.Context, *lab.Lab) error {
	return func(ctx context.Context, l *lab.Lab) error {
		disk := fmt.Sprintf("stickdisk%d", n)
		err := l.PC().Plug(ctx, emptyDisk(disk), map[string]any{"driver": "usb-storage", "drive": disk, "id": stickName(n), "serial": stickName(n), "bus": "usb0.0"})
		if err != nil {
			return err
		}
		return shell(ctx, l, []string{"for i in $(seq 100); do grep -qs " + stickName(n) + " /sys/bus/usb/devices/*/serial && break; sleep 0.1; done",
			"grep -q " + stickName(n) + " /sys/bus/usb/devices/*/serial"})
	}
}

func stickName(n int) string { return fmt.Sprintf("stick%d", n) }

// inAndOut pulls the stick out again once the kernel has it.
func inAndOut(n int) func(context.Context, *lab.Lab) error {
	return func(ctx context.Context, l *lab.Lab) error {
		if err := stick(n)(ctx, l); err != nil {
			return err
		}
		return l.PC().Unplug(ctx, stickName(n))
	}
}

// hardware are attacks by parts.
var hardware = []Attack{
	{Name: "network-card-plugged-in", Stage: Settled, FoundBy: "net", Reasons: []string{"net-second-interface"}, Detail: "52:54:00:de:ad:02",
		Host: func(ctx context.Context, l *lab.Lab) error { return l.PC().AddNIC(ctx, "52:54:00:de:ad:02") }},
	{Name: "disk-plugged-in", Stage: Settled, FoundBy: "hw", Reasons: []string{"hw-added"}, Detail: "0x1af4 0x1042", // virtio disk
		Host: plug(emptyDisk("hot0"), map[string]any{"driver": "virtio-blk-pci", "drive": "hot0", "id": "hotdisk0", "bus": "slot1"})},
	{Name: "device-plugged-in", Stage: Settled, FoundBy: "uevent", Reasons: []string{"uevent-added"}, Detail: "/0000:03:00.0 at", // behind the third port
		Host: plug(nil, map[string]any{"driver": "virtio-rng-pci", "id": "hotrng0", "bus": "slot2"})},
	{Name: "usb-controller-plugged-in", Stage: Settled, FoundBy: "hw", Reasons: []string{"hw-added"}, Detail: "0x1b36 0x000d", // QEMU's xHCI
		Host: plug(nil, map[string]any{"driver": "qemu-xhci", "id": "hotusb0", "bus": "slot3"})},
	{Name: "usb-stick-plugged-in", Stage: Settled, USB: true, FoundBy: "hw", Reasons: []string{"hw-added"}, Detail: stickName(1),
		Host: stick(1)},
	{Name: "usb-stick-in-and-out", Stage: Settled, USB: true, FoundBy: "uevent", Reasons: []string{"uevent-removed"}, Detail: "scsi of /devices/pci",
		Host: inAndOut(2)},
	{Name: "usb-keyboard-pulled-out", Stage: Settled, USB: true, FoundBy: "hw", Reasons: []string{"hw-removed"}, Detail: "0627 0001", // QEMU's keyboard
		Host: func(ctx context.Context, l *lab.Lab) error { return l.PC().Unplug(ctx, keyboard) }},
	{Name: "smbios-and-disk-changed", Stage: Reboot, FoundBy: "hw", Reasons: []string{"hw-added", "hw-changed"}, Detail: "dmi product_serial",
		Host: func(_ context.Context, l *lab.Lab) error {
			l.Hardware.SMBIOS, l.Hardware.Disk = []string{"type=1,manufacturer=Other,serial=4711"}, "EXTRA-1"
			return nil
		}},
}

// containers are attacks by way of Docker.
var containers = []Attack{
	{Name: "process-namespace-by-hand", FoundBy: "container", Reasons: []string{"container-unknown"}, Detail: "sleep",
		Commit: []string{quiet("unshare --pid --fork /usr/bin/sleep 3600")}},
	{Name: "control-group-named-like-one", FoundBy: "container", Reasons: []string{"container-unknown"}, Detail: "container beefbeefbeef",
		Commit: []string{"mkdir -p " + fakeScope, "/bin/sh -c 'echo $$ > " + fakeScope + "/cgroup.procs; exec /usr/bin/sleep 3600' >/dev/null 2>&1 </dev/null &"}},
	{Name: "privileged-container", Stage: Settled, Docker: true, FoundBy: "container", Reasons: []string{"container-privileged"}, Detail: "privileged",
		Commit: []string{"docker run -d --privileged " + taskName + " work 1h /tmp"}},
	{Name: "program-copied-into-container", Stage: Settled, Docker: true, FoundBy: "procs", Reasons: []string{"procs-unknown-executable"}, Detail: "/tmp/copied",
		Commit: []string{"id=$(docker run -d " + taskName + " work 1h /tmp)", "cp " + hpcLab + " /run/copied; printf x >> /run/copied; docker cp /run/copied $id:/tmp/copied",
			"docker exec -d $id /tmp/copied work 1h /tmp"}},
}

const fakeScope = "/sys/fs/cgroup/docker-beefbeefbeefbeefbeefbeefbeefbeefbeefbeefbeefbeefbeefbeefbeefbeef.scope"
