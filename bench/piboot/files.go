package main

import "strings"

// libraries is where Debian's arm64 libraries are.
const libraries = "/usr/lib/aarch64-linux-gnu"

// extraFiles are the configuration of an encrypted root whose key the chip keeps,
// what maintainer scripts would have made, and the script that builds. initramfs-tools
// knows nothing of systemd-cryptsetup: a hook takes it along with what it loads at run
// time, and a script starts it. cryptsetup-initramfs, which would ask for a passphrase
// next, finds the volume open.
func extraFiles(release, tpm, uuid string) map[string]file {
	script := func(lines ...string) file { return file{mode: 0o755, text: strings.Join(lines, "\n") + "\n"} }
	text := func(mode int64, s string) file { return file{mode: mode, text: s} }
	return map[string]file{
		"etc/passwd":                  text(0o644, "root:x:0:0:root:/root:/bin/sh\n"),
		"etc/group":                   text(0o644, "root:x:0:\n"),
		"usr/bin/awk":                 {link: "gawk"},
		"usr/bin/which":               {link: "which.debianutils"},
		"etc/mtab":                    {link: "../proc/self/mounts"},
		"etc/fstab":                   text(0o644, "/dev/mapper/root / squashfs ro 0 1\n"),
		"etc/crypttab":                text(0o644, "root UUID="+uuid+" none luks,initramfs\n"),
		"var/tmp/.keep":               text(0o644, ""),
		"tmp/.keep":                   text(0o644, ""),
		"proc/.keep":                  text(0o644, ""),
		"sys/.keep":                   text(0o644, ""),
		"var/lib/dpkg/status":         text(0o644, ""),
		"etc/initramfs-tools/modules": text(0o644, "squashfs\n"+tpm+"\n"),
		"etc/initramfs-tools/hooks/chip": script("#!/bin/sh", `[ "$1" = prereqs ] && exit 0`,
			". /usr/share/initramfs-tools/hook-functions", "set -e",
			"copy_exec /usr/bin/systemd-cryptsetup",
			"for l in esys mu rc tcti-device; do copy_exec "+libraries+"/libtss2-$l.so.0; done",
			"copy_exec "+libraries+"/cryptsetup/libcryptsetup-token-systemd-tpm2.so"),
		"etc/initramfs-tools/scripts/local-top/chip": script("#!/bin/sh", `[ "$1" = prereqs ] && exit 0`,
			"disk=/dev/disk/by-uuid/"+uuid, "n=0",
			`until [ -e $disk ] && [ -e /dev/tpmrm0 ] || [ $n -ge 300 ]; do n=$((n+1)); sleep 0.1; done`,
			"systemd-cryptsetup attach root $disk - tpm2-device=auto,headless=true"),
		// Runs once the root is mounted.
		"etc/initramfs-tools/scripts/init-bottom/piboot": script("#!/bin/sh", `[ "$1" = prereqs ] && exit 0`,
			"echo PIBOOT mounted > /dev/kmsg", "dmesg > /dev/console", "echo PIBOOT end > /dev/console"),
		"piboot/key": text(0o600, buildKey),
		"piboot/build": script("#!/bin/sh", "export PATH=/usr/sbin:/usr/bin",
			"mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev",
			"exec > /dev/ttyAMA0 2>&1", "depmod "+release, "modprobe virtio_blk; modprobe dm_crypt",
			// No udev here: cryptsetup makes the device nodes by itself.
			"DM_DISABLE_UDEV=1 cryptsetup open --key-file /piboot/key /dev/vda root", "mkinitramfs -o /initramfs "+release+" && port=$(echo /dev/vport*p1) && cat /initramfs > \"$port\"",
			"set -- $(sha256sum /initramfs)", `echo "PIBOOT built $1"`, "sync; echo o > /proc/sysrq-trigger; sleep 60"),
	}
}
