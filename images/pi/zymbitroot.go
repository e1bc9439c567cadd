package pi

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"sort"
	"strings"

	"portcullis/images/deb"
	"portcullis/images/debroot"
	"portcullis/images/squash"
)

// zymbitLibrary is what zymbitd loads. Without it the image has no zymbitd.
const zymbitLibrary = "libzk_app_utils.so"

// zymbitProgram speaks to the module in the running system. It is the one program of
// ours that is not static, because it loads a library.
var zymbitProgram = program{name: "zymbitd", place: "/usr/lib/portcullis/zymbitd", dynamic: true}

// zymbitUnits begins the names of what package systemd has for zymbitd only.
const zymbitUnits = "zymbitd."

// zymbitd says whether this image can speak to the module after the boot. Then all of
// the vendor's files are in the system; tools alone are in the initramfs only.
func (b *builder) zymbitd() bool { return b.vendor != nil && b.vendor.library != "" }

// tamperDropIn lets the tamper policy wait for zymbitd where there is one.
const (
	tamperDropIn     = "/etc/systemd/system/portcullis-tamper.service.d/zymbitd.conf"
	tamperDropInText = "[Unit]\nWants=zymbitd.service\nAfter=zymbitd.service\n"
)

// vendorFiles is what the vendor's packages put into the system.
type vendorFiles struct {
	nodes   map[string]*squash.Node // by path
	library string                  // path of zymbitLibrary; "": not among them
	units   []string                // that say where they belong
}

// vendorSkip are directories that nothing in the running system reads.
var vendorSkip = []string{"/usr/share/doc/", "/usr/share/man/", "/usr/share/lintian/", "/etc/init.d/", "/etc/apt/"}

// readVendor takes the vendor's packages apart; nil where none were given. Their scripts
// do not run: what those would make (accounts, settings) is for the operator's recipe.
func (b *builder) readVendor(ctx context.Context) (*vendorFiles, error) {
	packages, _, err := b.zymbitPackages()
	if err != nil || packages == nil {
		return nil, err
	}
	v := &vendorFiles{nodes: map[string]*squash.Node{}}
	for _, p := range packages {
		err := deb.Walk(ctx, p, func(h *tar.Header, r io.Reader) error { return v.take(filepath.Base(p), h, r) })
		if err != nil {
			return nil, err
		}
	}
	sort.Strings(v.units)
	return v, nil
}

// maxVendorFile caps one file of a package, in bytes.
const maxVendorFile = 64 << 20

func (v *vendorFiles) take(from string, h *tar.Header, r io.Reader) error {
	name := path.Clean("/" + h.Name)
	for _, skip := range vendorSkip {
		if strings.HasPrefix(name, skip) {
			return nil
		}
	}
	var content squash.Content
	if h.Typeflag == tar.TypeReg {
		if h.Size > maxVendorFile {
			return refuse(debroot.ReasonTooLarge, "%s: %s has %d bytes", from, name, h.Size)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", from, name, err)
		}
		content = squash.Bytes(data)
		if dir := path.Dir(name); path.Base(dir) == "system" && path.Base(path.Dir(dir)) == "systemd" && debroot.Installable(data) {
			v.units = append(v.units, path.Base(name))
		}
	}
	n, ok := squash.FromHeader(h, content)
	if !ok || n.Kind == squash.Dir {
		return nil
	}
	n.UID, n.GID = 0, 0
	v.nodes[name] = n
	if path.Base(name) == zymbitLibrary && strings.Contains(path.Dir(name), "/lib") {
		v.library = name
	}
	return nil
}

// install puts the vendor's files into the system. They cannot replace a file of Debian's.
func (v *vendorFiles) install(t *squash.Tree) error {
	names := make([]string, 0, len(v.nodes))
	for name := range v.nodes {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		if t.Get(name) != nil {
			return refuse(debroot.ReasonOptions, "the vendor's packages would replace %s", name)
		}
		n := *v.nodes[name]
		n.Time = t.Time
		if err := t.Put(name, &n); err != nil {
			return err
		}
	}
	// On the card it is filled from what the module needs to know its Pi again.
	return t.Mkdir("/var/lib/zymbit", 0o700)
}
