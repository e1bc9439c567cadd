package guard

import (
	"encoding/binary"
	"errors"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"portcullis/verifier/image"
)

// opaqueAttr makes a directory hide the one below it (Documentation/filesystems/overlayfs.rst).
const opaqueAttr = "trusted.overlay.opaque"

// hostAttrs are those that the host's own security modules and overlayfs put on files,
// which give no rights and show nothing else: not of the image, and not compared.
var hostAttrs = []string{"security.selinux", "security.apparmor", "security.ima", "security.evm",
	"trusted.overlay.origin", "trusted.overlay.impure", "trusted.overlay.nlink", "trusted.overlay.uuid"}

// sameXattrs compares the extended attributes of a name with its image's, both ways:
// security.capability gives rights, an ACL lets others write, and those of overlayfs
// (redirect, metacopy, opaque) make a name show what another one contains.
func sameXattrs(path string, f *image.File, opaque bool, by shift) error {
	names, err := listXattrs(path)
	if err != nil {
		return refuse(ReasonImageStore, "/%.200q: attributes: %v", f.Path, err)
	}
	var found []string
	hides := false
	for _, name := range names {
		switch {
		case slices.Contains(hostAttrs, name):
		case name == opaqueAttr:
			hides = true
		case image.AllowedXattr(name):
			value, err := xattr(path, name)
			if err != nil {
				return refuse(ReasonImageStore, "/%.200q: attribute %.100q: %v", f.Path, name, err)
			}
			if name == capabilityAttr {
				value = by.capability(value)
			}
			found = append(found, strconv.Quote(name)+"="+strconv.Quote(value))
		default:
			return refuse(ReasonImageStore, "/%.200q has the attribute %.100q, which no image has", f.Path, name)
		}
	}
	if hides != opaque {
		return refuse(ReasonImageStore, "/%.200q hides what is below it: %t, in the image: %t", f.Path, hides, opaque)
	}
	slices.Sort(found)
	if f.Kind != image.KindOpaque && strings.Join(found, ",") != f.Xattrs {
		return refuse(ReasonImageStore, "/%.200q has other attributes", f.Path)
	}
	return nil
}

// capabilityAttr is struct vfs_cap_data (linux/capability.h): a revision and two words;
// in revision 3 another word says for whose namespaces it holds, by their root.
const capabilityAttr = "security.capability"

// capability is the attribute as an image has it: engines with user namespaces write
// revision 3, for their containers' root, where the image has revision 2.
func (by shift) capability(value string) string {
	const (
		words     = 20 // bytes of revision 2
		revision  = 3  // byte of it
		plain     = 2
		forSomeID = 3
	)
	if by.uid == 0 || len(value) != words+4 || value[revision] != forSomeID || binary.LittleEndian.Uint32([]byte(value[words:])) != uint32(by.uid) {
		return value
	}
	b := []byte(value[:words])
	b[revision] = plain
	return string(b)
}

func listXattrs(path string) ([]string, error) {
	b := make([]byte, 1024)
	for {
		n, err := unix.Llistxattr(path, b)
		if errors.Is(err, unix.ERANGE) && len(b) < 64<<10 {
			b = make([]byte, 64<<10) // XATTR_LIST_MAX
			continue
		}
		if errors.Is(err, unix.ENOTSUP) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		text := strings.TrimSuffix(string(b[:n]), "\x00")
		if text == "" {
			return nil, nil
		}
		return strings.Split(text, "\x00"), nil
	}
}

func xattr(path, name string) (string, error) {
	b := make([]byte, 64<<10) // XATTR_SIZE_MAX
	n, err := unix.Lgetxattr(path, name, b)
	if err != nil {
		return "", err
	}
	return string(b[:n]), nil
}
