// Package pi runs one Portcullis Pi: a QEMU aarch64 machine with a built SD card,
// a TPM by swtpm, its serial console, its network ports and, with a development
// image, the lab's command channel. It is called by package lab, by
// lab/piscenario and by benchmarks only; taps need root, the rest does not.
//
// QEMU has no model of the Pi's boot firmware. The package has one of its own
// (Firmware Direct): it reads autoboot.txt on the card, goes to the boot
// partition named there and gives QEMU the kernel, initramfs and command line
// that it finds, from boot.img where there is one. It does so again at every
// reset of the guest, so that a changed autoboot.txt has its effect. AAVMF is a
// real firmware that measures; Raspi3 is QEMU's model of a Raspberry Pi 3, which
// shows that the kernel finds its card by the SD controller of the BCM283x.
//
// The machine is always emulated (TCG, never KVM). Killing it at any moment is a
// power cut: what the guest had flushed is on the card, the rest may be or not.
package pi
