// Package qemu runs one PC: a QEMU machine with real firmware, its serial
// console, its QMP control socket and, where asked, a TPM by swtpm. It is called
// by package lab and by tests only.
//
// The machine is always emulated (accel tcg, never KVM) so that a boot means the
// same on every host, and QEMU must be 10 or newer: 7.2 corrupts x86 guests with
// more than one processor (cmpxchg16b under multi-threaded TCG).
package qemu
