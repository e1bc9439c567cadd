package httpboot

import (
	"fmt"
	"strings"

	"portcullis/images/manifest"
	"portcullis/pxe/artefact"
	"portcullis/pxe/session"
)

// script returns the iPXE script of a session. base is its URL with a slash at the end.
//
// On UEFI the unified image must get no load options: systemd's stub takes them
// in place of the signed command line, root hash included, where Secure Boot is
// off. iPXE always passes the image's name and then its arguments (seen with
// Debian's: the kernel's whole command line was "hpc.efi"), so there are no
// arguments and the name is made empty, which the stub passes over. A BIOS
// cannot run it; it gets kernel and initrd of the same image and exactly the
// manifest's command line, and `initrd=` for those iPXE builds that hand the
// initrd over by name.
func script(base string, s session.Session, img *artefact.Image) string {
	if s.Firmware != session.BIOS {
		return fmt.Sprintf("#!ipxe\nkernel --name= %s%s\nboot\n", base, manifest.UKI)
	}
	var b strings.Builder
	fmt.Fprintf(&b, "#!ipxe\nkernel %s%s %s initrd=%s\n", base, manifest.Kernel, img.Manifest.Cmdline, manifest.Initrd)
	fmt.Fprintf(&b, "initrd %s%s\nboot\n", base, manifest.Initrd)
	return b.String()
}
