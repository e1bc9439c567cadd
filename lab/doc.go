// Package lab runs the whole project on one machine: namespaces for the Pi and
// the internet behind it, the real services, and a PC in QEMU with real firmware.
// It is called by `portcullis lab` and by tests; it needs root.
//
// A lab has a name and a state directory. Everything that runs or exists because
// of it is recorded there, so that a lab whose owner was killed can be removed by
// the next one. Two labs of different names do not meet anywhere.
package lab
