// Package ktextmask reads a Linux x86-64 bzImage and says which bytes of its
// text the stock kernel patches itself: at run time (jump labels, static calls,
// the address of the dentry table) and once at boot (alternatives, return and
// retpoline sites, ftrace entries …).
//
// What is patched at run time is left out of every comparison of kernel text,
// and counted; but only where it holds what the kernel itself can have put
// there (Sites.Clear): a jump label its NOP or the one JMP to its target, a
// static call a branch into kernel text, a NOP or a return. All other bytes must
// equal the reference that was taken of the machine, and that reference must
// equal the signed image outside of the boot-time sites.
//
// A kernel that carries its configuration and has neither modules nor static keys
// (rootfs/hpc/kernel) leaves next to nothing out: its static calls are decided at
// boot and belong to the reference, once they have been seen to be legal.
//
// The image builder calls Build and ships the encoded mask in the root image;
// the agent and attestd read it with Decode.
package ktextmask

// Granule is the size in bytes of the pieces in which text is compared: what a
// difference is named by. Text is a multiple of it but for its last piece.
const Granule = 16 << 10

// Classes of sites that are patched at run time, at any moment: they are left
// out of every comparison while they have a legal form.
const (
	JumpLabel    = "jump-label"        // NOP ↔ JMP of static keys, __jump_table
	StaticCall   = "static-call"       // calls of .static_call_sites
	Trampoline   = "static-call-tramp" // the trampolines they go through
	RuntimeConst = "runtime-const"     // addresses of boot-time allocations
)

// Classes of sites that are patched once, before the first process: they are
// part of the reference.
const (
	Alternative = "alternative"  // .altinstructions
	Retpoline   = "retpoline"    // .retpoline_sites
	Return      = "return"       // .return_sites
	Call        = "call"         // .call_sites: call depth tracking
	CallPadding = "call-padding" // the bytes before the functions they call
	SMPLock     = "smp-lock"     // .smp_locks
	Endbr       = "endbr"        // .ibt_endbr_seal
	FtraceEntry = "ftrace-entry" // calls of __fentry__, NOPs after boot
	CPUConst    = "cpu-const"    // constants that follow from the CPU
)

// Limits of a mask file.
const (
	maxClasses    = 64
	maxRanges     = 1 << 20
	maxTextSize   = 256 << 20
	maxHeaderSize = 1 << 20
)

// Range is a piece of text, counted in bytes from its start.
type Range struct{ Off, Len uint32 }

// Class is one sort of site that is patched at run time.
type Class struct {
	Name   string
	Ranges []Range
	// Targets are where the jumps of class JumpLabel go, one a range, counted
	// from the start of the text; other classes have none.
	Targets []uint32
}

// Count tells of a class of sites that is patched at boot.
type Count struct {
	Name   string `json:"name"`
	Ranges int    `json:"ranges"`
	Bytes  int    `json:"bytes"`
}

// Mask tells of one kernel which bytes of its text change and what the others are.
type Mask struct {
	Release  string     // as uname -r
	Notes    [32]byte   // SHA-256 of the kernel's ELF notes, as in /sys/kernel/notes
	TextBase uint64     // virtual address of the text when it is not moved (nokaslr)
	TextSize uint64     // bytes
	Classes  []Class    // run-time sites, sorted, not overlapping within a class
	Boot     []Range    // what is patched at boot only, sorted, not overlapping
	Once     []Class    // those of Boot that must have a legal form from then on
	Without  []string   // options that the kernel says it has not, sorted
	AtBoot   []Count    // what Boot is made of
	Stock    [][32]byte // SHA-256 of each granule of the signed text with all of these zeroed
}
