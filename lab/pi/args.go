package pi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"portcullis/lab/qemu"
)

// args runs the firmware's part that is ours and returns QEMU's command line.
func (m *Machine) args() (args []string, partition int, err error) {
	c := m.cfg
	args = []string{
		"-name", "portcullis-pi-" + c.Name, "-nodefaults", "-no-user-config", "-display", "none",
		"-accel", "tcg,thread=multi",
		// A reset ends this QEMU: the firmware must look at the card again. It waits for
		// us with the last event read.
		"-action", "reboot=shutdown,shutdown=pause",
		"-chardev", "socket,id=console0,server=off,path=" + qemu.Escape(consoleSocket(c.Dir)) +
			",logappend=on,logfile=" + qemu.Escape(ConsoleLog(c.Dir)),
		"-qmp", "unix:" + qemu.Escape(QMPSocket(c.Dir)) + ",server=on,wait=off",
	}
	fw, err := boot(c)
	if err != nil {
		return nil, 0, err
	}
	if c.Firmware == Raspi3 {
		return append(args, raspi3(c, fw)...), fw.partition, nil
	}
	args = append(args, virt(c)...)
	if c.Firmware == AAVMF {
		more, err := aavmf(c, fw)
		return append(args, more...), fw.partition, err
	}
	return append(args, "-kernel", fw.kernel, "-initrd", fw.initramfs, "-append", fw.cmdline), fw.partition, nil
}

// virt is the machine that stands for a Pi: everything on PCI, in this order.
func virt(c Config) []string {
	args := []string{
		// The firmware hands on a device tree, as a Pi's does, and no ACPI.
		"-machine", "virt,gic-version=3,acpi=off", "-cpu", "max,pauth-impdef=on",
		"-smp", strconv.Itoa(c.CPUs), "-m", strconv.Itoa(c.MemoryMB), "-serial", "chardev:console0",
		"-drive", "if=none,id=card,driver=raw,discard=unmap," + medium(c),
		"-device", "virtio-blk-pci,drive=card",
		"-device", "virtio-rng-pci",
		"-chardev", "socket,id=lab0,server=on,wait=off,path=" + qemu.Escape(ChannelSocket(c.Dir)),
		"-chardev", "file,id=events0,append=on,path=" + qemu.Escape(EventLog(c.Dir)),
		"-device", "virtio-serial-pci",
		"-device", "virtserialport,chardev=lab0,name=" + CommandPort,
		"-device", "virtserialport,chardev=events0,name=" + EventPort,
	}
	if c.Module != "" {
		args = append(args, "-chardev", "socket,id=module0,path="+qemu.Escape(c.Module), "-device", "virtserialport,chardev=module0,name="+ModulePort)
	}
	for i, n := range c.NICs {
		id := "net" + strconv.Itoa(i)
		if n.Tap == "" {
			args = append(args, "-netdev", "hubport,id="+id+",hubid="+strconv.Itoa(i))
		} else {
			args = append(args, "-netdev", "tap,id="+id+",script=no,downscript=no,ifname="+qemu.Escape(n.Tap))
		}
		args = append(args, "-device", "virtio-net-pci,romfile=,netdev="+id+",mac="+n.MAC)
	}
	for i, d := range c.Disks {
		id := "disk" + strconv.Itoa(i)
		args = append(args, "-drive", "if=none,format=raw,readonly=on,id="+id+",file="+qemu.Escape(d), "-device", "virtio-blk-pci,drive="+id)
	}
	if c.TPM != "" {
		args = append(args, "-chardev", "socket,id=tpm0,path="+qemu.Escape(tpmSocket(c.Dir)),
			"-tpmdev", "emulator,id=tpm0,chardev=tpm0", "-device", "tpm-tis-device,tpmdev=tpm0")
	}
	return args
}

// medium is where QEMU finds the card.
func medium(c Config) string {
	if c.Medium != "" {
		return "file.driver=nbd,file.server.type=unix,file.server.path=" + qemu.Escape(c.Medium)
	}
	return "file.filename=" + qemu.Escape(c.Card)
}

// raspi3 is QEMU's Raspberry Pi 3 B: 1 GiB, four processors. Its second serial
// line is the mini UART, Linux's ttyS1.
func raspi3(c Config, fw *booted) []string {
	return []string{
		"-machine", "raspi3b", "-dtb", c.DTB, "-kernel", fw.kernel, "-initrd", fw.initramfs, "-append", fw.cmdline,
		"-drive", "if=sd,format=raw,file=" + qemu.Escape(c.Card), "-serial", "null", "-serial", "chardev:console0",
	}
}

// Where Debian's package qemu-efi-aarch64 keeps the firmware.
const (
	aavmfCode = "/usr/share/AAVMF/AAVMF_CODE.fd"
	aavmfVars = "/usr/share/AAVMF/AAVMF_VARS.fd"
)

// aavmf gives the real firmware the boot partition as a disk of its own: alone it
// would always take the first FAT on the card that has a UKI.
func aavmf(c Config, fw *booted) ([]string, error) {
	vars := filepath.Join(c.Dir, "vars.fd")
	if _, err := os.Stat(vars); errors.Is(err, fs.ErrNotExist) {
		b, err := os.ReadFile(aavmfVars)
		if err != nil {
			return nil, fmt.Errorf("pi: %w; install the package qemu-efi-aarch64", err)
		}
		if err := os.WriteFile(vars, b, 0o600); err != nil {
			return nil, fmt.Errorf("pi: %w", err)
		}
	}
	return []string{
		"-drive", "if=pflash,format=raw,unit=0,readonly=on,file=" + aavmfCode,
		"-drive", "if=pflash,format=raw,unit=1,file=" + qemu.Escape(vars),
		"-drive", "if=none,format=raw,readonly=on,id=esp,file=" + qemu.Escape(fw.esp),
		"-device", "virtio-blk-pci,drive=esp,bootindex=0",
	}, nil
}

// shutdownReason reads the data of QMP's event SHUTDOWN.
func shutdownReason(data json.RawMessage) string {
	var d struct {
		Reason string `json:"reason"`
	}
	if json.Unmarshal(data, &d) != nil || d.Reason == "" {
		return "unknown"
	}
	return d.Reason
}
