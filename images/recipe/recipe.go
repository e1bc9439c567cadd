package recipe

import "fmt"

// Schema is the only schema this package reads.
const Schema = "portcullis/recipe/v1"

// Recipe is one image description with everything it extends merged in.
type Recipe struct {
	Suite      string   // of Debian, for instance trixie
	Components []string // of the archive
	Packages   []string // wanted, with what they depend on
	Backports  []string // those of them, and of the kernel's, that come from the suite's backports
	Without    []string // dropped from what the dependencies bring
	Exclude    []string // globs of paths that the image leaves out
	Kernel     Kernel
	Boot       Boot
	Cmdline    []string // words in order, without the verity words, which the builder adds
	Dirs       []Dir
	Files      []File
	Links      []Link
	Groups     []Group
	Users      []User
	Enable     []string // units
	Mask       []string // units
	Join       []Join
	LabChannel bool // the image has a root command channel; only the built-in lab recipe may set it
	Squash     Squash
}

// Kernel says which kernel and which of its modules.
type Kernel struct {
	Package string   // of the kernel, a meta package is fine
	Build   string   // "" = the kernel of Package, BuildHardened = the hardened one of the same version
	Stub    string   // package with the UEFI stub; "" where no UEFI starts the kernel
	Initrd  []string // module names for the initrd, in load order
	Root    []string // module names or path globs for the root image
	Late    []string // module names that the initrd's program loads out of the mounted root, in load order
	// Unlisted modules are in the root image but not on the list of those that a
	// trusted PC may have loaded: tests load one and must be found out.
	Unlisted []string
	// Firmware packages: of their files only those that an included module names are taken.
	Firmware []string
	// DeviceTrees of the kernel package as vendor/name.dtb; each is merged with Overlay.
	DeviceTrees []string
	Overlay     []byte // source of a device tree overlay, nil = none
}

// BuildHardened is the kernel that images/kernel builds.
const BuildHardened = "hardened"

// Boot is what a board's own firmware reads beside kernel and initrd.
type Boot struct {
	Firmware string   // package with the board's firmware
	Files    []string // of it
	Config   []byte   // the firmware's configuration file, nil = none
}

// Squash tunes the root file system.
type Squash struct {
	Level     int // zstd 1..22
	BlockSize int // bytes: a power of two, 4096..1 MiB
}

// Dir is an empty directory.
type Dir struct {
	Path string
	Mode uint32
	At   Position
}

// File is a regular file owned by root.
type File struct {
	Path    string
	Mode    uint32
	Content []byte
	At      Position
}

// Link is a symlink.
type Link struct {
	Path, Target string
	At           Position
}

// Group is a system group.
type Group struct {
	Name string
	GID  int
	At   Position
}

// User is a system user without a password or a shell.
type User struct {
	Name string
	UID  int
	Home string
	At   Position
}

// Join is a file made of others, in the order of their names.
type Join struct {
	Path string // written
	From string // glob of package files
	At   Position
}

// Position is where in which file something was written.
type Position struct {
	File string
	Line int
}

func (p Position) String() string { return fmt.Sprintf("%s:%d", p.File, p.Line) }

// Reason classifies a recipe error; it appears in messages and docs by this name.
type Reason string

// Reasons.
const (
	ReasonSyntax   Reason = "recipe-syntax"   // not YAML, or not the expected shape
	ReasonUnknown  Reason = "recipe-unknown"  // a key that does not exist
	ReasonValue    Reason = "recipe-value"    // a value out of range
	ReasonLoop     Reason = "recipe-loop"     // extends itself
	ReasonFile     Reason = "recipe-file"     // a named file cannot be read
	ReasonReserved Reason = "recipe-reserved" // a path or word that belongs to the builder
)

// Error is a refused recipe.
type Error struct {
	At     Position
	Reason Reason
	Msg    string
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s (%s)", e.At, e.Msg, e.Reason) }

func errorf(at Position, r Reason, format string, args ...any) *Error {
	return &Error{at, r, fmt.Sprintf(format, args...)}
}
