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
// The image builder calls Build and ships the encoded mask in the root image;
// the agent and attestd read it with Decode.
package ktextmask

// Granule is the size in bytes of the pieces in which text is compared: what a
// difference is named by. Text is a multiple of it but for its last piece.
const Granule = 16 << 10

// When a class of sites is patched.
const (
	RunTime = "run"  // at any moment: left out of every comparison while it has a legal form
	Boot    = "boot" // before the first process: part of the reference
)

// Classes of sites, in the order in which they are stored.
const (
	JumpLabel     = "jump-label"        // NOP ↔ JMP of static keys, __jump_table
	StaticCall    = "static-call"       // calls of .static_call_sites
	Trampoline    = "static-call-tramp" // the trampolines they go through
	RuntimeConst  = "runtime-const"     // addresses of boot-time allocations
	Alternative   = "alternative"       // .altinstructions
	Retpoline     = "retpoline"         // .retpoline_sites
	Return        = "return"            // .return_sites
	Call          = "call"              // .call_sites: call depth tracking
	CallPadding   = "call-padding"      // the bytes before the functions they call
	SMPLock       = "smp-lock"          // .smp_locks
	Endbr         = "endbr"             // .ibt_endbr_seal
	FtraceEntry   = "ftrace-entry"      // calls of __fentry__, NOPs after boot
	CPUConst      = "cpu-const"         // constants that follow from the CPU
	maxClasses    = 64
	maxRanges     = 1 << 20
	maxTextSize   = 256 << 20
	maxHeaderSize = 1 << 20
)

// Range is a piece of text, counted in bytes from its start.
type Range struct{ Off, Len uint32 }

// Class is one sort of site.
type Class struct {
	Name   string
	When   string // RunTime or Boot
	Ranges []Range
	// Targets are where the jumps of class JumpLabel go, one a range, counted
	// from the start of the text; other classes have none.
	Targets []uint32
}

// Mask tells of one kernel which bytes of its text change and what the others are.
type Mask struct {
	Release  string     // as uname -r
	Notes    [32]byte   // SHA-256 of the kernel's ELF notes, as in /sys/kernel/notes
	TextBase uint64     // virtual address of the text when it is not moved (nokaslr)
	TextSize uint64     // bytes
	Classes  []Class    // sorted, not overlapping within a class
	Stock    [][32]byte // SHA-256 of each granule of the signed text with all ranges zeroed
}
