// Package kernel builds the hardened kernel of the PC: Debian's source of the very
// version that the image's own kernel has, Debian's configuration as the base, the
// differences of rootfs/hpc/kernel/hardened.config, no modules.
//
// Source, configuration and compiler are packages of the archive that the image
// itself comes from, fetched and checked in the same way (package deb). They are
// unpacked into a directory of their own and the build runs there, as nobody, with
// neither network nor devices: nothing of the build machine gets into the kernel, so
// that equal packages and an equal fragment make equal bytes.
//
// The portcullis program calls it (image kernel); images/hpc asks Find for what was
// built. It needs root, for chroot(2) and namespaces.
package kernel

import (
	"portcullis/images/debroot"
)

// Reasons why there is no hardened kernel, beside those of package debroot.
const (
	ReasonConfig   debroot.Reason = "kernel-config"       // the configuration is not the one that was asked for
	ReasonVersion  debroot.Reason = "kernel-version"      // the archive's source has another version than the image's kernel
	ReasonNotBuilt debroot.Reason = "kernel-not-built"    // make kernel has not been run for these packages
	ReasonRoot     debroot.Reason = "kernel-needs-root"   // only root may change the root directory
	ReasonFailed   debroot.Reason = "kernel-build-failed" // a step of the build ended with an error
)
