// Package hpc builds the PC's image (root file system with its verity tree,
// initrd, UKI and signed manifest) out of a recipe, and checks a built one. It
// is called by the portcullis program, the lab and tests.
//
// Equal inputs make equal bytes. Every stage is kept in a cache under the
// digest of what went into it: the root file system does not depend on the
// gateway key, the version or the dates, so changing those rebuilds only
// initrd, UKI and manifest.
package hpc
