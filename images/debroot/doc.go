// Package debroot turns Debian packages into the parts of a bootable image:
// kernel with its module index, root file system as a tree, accounts, unit
// links, kernel modules, verity tree, initrd archive. The builders of the PC's
// and of the Pi's image (images/hpc, images/pi) call it; it knows neither
// signatures nor disks.
//
// A build is a chain of stages. Each is kept in a cache under the digest of all
// that went into it, the code of the packages that made it included, so that a
// change rebuilds what depends on it and nothing else.
package debroot
