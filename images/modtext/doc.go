// Package modtext computes what the text of a loaded x86-64 kernel module must be:
// the module file of the signed image, relocated to the addresses that the running
// kernel has given its sections. It knows the sites that the kernel patches itself,
// in a module as in its own text (images/ktextmask), and in which forms:
//
//	at run time   jump label    NOP, or the JMP to its target
//	              static call   NOP, return, or a branch into kernel text or a known module
//	              SMP lock      LOCK, or a DS prefix on one processor
//	when loaded   ftrace entry  the NOP, and nothing else
//	              return        RET and INT3, or a JMP into kernel text
//	              retpoline     CALL or JMP of the same register, or a branch
//	              call          CALL of its target, or of the padding before it
//	              ENDBR         itself, or the NOP of its size that seals it
//	              call padding  NOPs, or at their end what counts the depth of calls
//	              alternative   any bytes
//
// What is patched when the module is loaded stays as it is until the module goes; so
// that Result.Fixed is a digest that must not change while the layout does not.
//
// A module's symbols are its own sections, what the kernel exports (Exports, made of
// the signed kernel's __ksymtab) and what the modules export that it depends on.
package modtext

// Path is where the list of the kernel's exported symbols lies in the root image.
const Path = "/usr/lib/portcullis/kernel.exports"

// PieceSize is the size of the pieces in which text is compared, in bytes. Behind a
// piece up to Margin bytes of the section must be known, so that a site on its edge
// can be judged.
const (
	PieceSize = 4096
	Margin    = 16
)

// Limits of a module.
const (
	maxSections = 512
	maxSymbols  = 1 << 18
	maxText     = 32 << 20 // bytes of text
	maxEntries  = 1 << 20  // of one table of sites or relocations
)

// The range of addresses in which modules lie, with the kernel image at its fixed
// place or not (Documentation/arch/x86/x86_64/mm.rst).
const (
	areaStart = 0xffffffffa0000000
	areaEnd   = 0xffffffffff000000
)

// InArea tells whether size bytes from a lie where the kernel puts modules.
func InArea(a, size uint64) bool {
	return a >= areaStart && a < areaEnd && size <= areaEnd-a
}
