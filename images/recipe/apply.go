package recipe

import (
	"path"
	"strings"

	"gopkg.in/yaml.v3"

	"portcullis/images/deb"
)

// Reserved is the directory of the builder's own files in the image.
const Reserved = "/usr/lib/portcullis"

// apply merges d over what it extends: lists grow, single values are replaced.
func (d *document) apply(src Source, dir string, ours bool, r *Recipe) error {
	return d.mapping(d.root, func(key string, at Position, v *yaml.Node) error {
		var err error
		switch key {
		case "schema", "extends":
		case "suite":
			r.Suite, err = d.word(v, "the name of a Debian release", deb.ValidName)
		case "components":
			r.Components = nil
			err = d.strings(v, &r.Components, "an archive component", deb.ValidName)
		case "packages":
			err = d.strings(v, &r.Packages, "a package name", deb.ValidName)
		case "backports":
			err = d.strings(v, &r.Backports, "a package name", deb.ValidName)
		case "without":
			err = d.strings(v, &r.Without, "a package name", deb.ValidName)
		case "exclude":
			err = d.strings(v, &r.Exclude, "an absolute path glob", validGlob)
		case "kernel":
			err = d.kernel(v, src, dir, r)
		case "boot":
			err = d.boot(v, src, dir, r)
		case "cmdline":
			err = d.cmdline(v, r)
		case "directories":
			err = d.dirs(v, ours, r)
		case "files":
			err = d.files(v, src, dir, ours, r)
		case "links":
			err = d.links(v, ours, r)
		case "groups":
			err = d.groups(v, r)
		case "users":
			err = d.users(v, r)
		case "enable":
			err = d.strings(v, &r.Enable, "a unit name", validUnit)
		case "mask":
			err = d.strings(v, &r.Mask, "a unit name", validUnit)
		case "join":
			err = d.joins(v, ours, r)
		case "lab_channel":
			if !ours {
				return errorf(at, ReasonReserved, "lab_channel belongs to the project's own lab recipe: build with the lab profile instead")
			}
			r.LabChannel = v.Value == "true"
		case "squash":
			err = d.squash(v, r)
		default:
			return unknown(at, key, "schema", "extends", "suite", "components", "packages", "backports", "without", "exclude", "kernel", "boot", "cmdline",
				"directories", "files", "links", "groups", "users", "enable", "mask", "join", "squash")
		}
		return err
	})
}

func (d *document) word(n *yaml.Node, what string, ok func(string) bool) (string, error) {
	s, err := d.text(n)
	if err == nil && !ok(s) {
		err = errorf(d.at(n), ReasonValue, "%q is not %s", s, what)
	}
	return s, err
}

func (d *document) kernel(n *yaml.Node, src Source, dir string, r *Recipe) error {
	return d.mapping(n, func(key string, at Position, v *yaml.Node) error {
		var err error
		switch key {
		case "package":
			r.Kernel.Package, err = d.word(v, "a package name", deb.ValidName)
		case "build":
			r.Kernel.Build, err = d.word(v, BuildHardened, func(s string) bool { return s == BuildHardened })
		case "stub":
			r.Kernel.Stub, err = d.word(v, "a package name", deb.ValidName)
		case "initrd_modules":
			err = d.strings(v, &r.Kernel.Initrd, "a module name", validModule)
		case "late_modules":
			err = d.strings(v, &r.Kernel.Late, "a module name", validModule)
		case "root_modules":
			err = d.strings(v, &r.Kernel.Root, "a module name or a path glob", func(s string) bool { return validModule(s) || validModuleGlob(s) })
		case "unlisted_modules":
			err = d.strings(v, &r.Kernel.Unlisted, "a module name", validModule)
		case "firmware":
			err = d.strings(v, &r.Kernel.Firmware, "a package name", deb.ValidName)
		case "device_trees":
			err = d.strings(v, &r.Kernel.DeviceTrees, "a device tree such as broadcom/bcm2711-rpi-4-b.dtb", validDeviceTree)
		case "overlay":
			r.Kernel.Overlay, err = d.source(v, at, src, dir)
		default:
			return unknown(at, "kernel."+key, "kernel.package", "kernel.build", "kernel.stub", "kernel.initrd_modules", "kernel.late_modules", "kernel.root_modules", "kernel.unlisted_modules", "kernel.firmware", "kernel.device_trees", "kernel.overlay")
		}
		return err
	})
}

// boot reads what a board's firmware wants.
func (d *document) boot(n *yaml.Node, src Source, dir string, r *Recipe) error {
	return d.mapping(n, func(key string, at Position, v *yaml.Node) error {
		var err error
		switch key {
		case "firmware":
			r.Boot.Firmware, err = d.word(v, "a package name", deb.ValidName)
		case "files":
			err = d.strings(v, &r.Boot.Files, "the name of a file of the firmware package", validPlainFile)
		case "config":
			r.Boot.Config, err = d.source(v, at, src, dir)
		default:
			return unknown(at, "boot."+key, "boot.firmware", "boot.files", "boot.config")
		}
		return err
	})
}

// source reads the file beside the recipe that n names.
func (d *document) source(n *yaml.Node, at Position, src Source, dir string) ([]byte, error) {
	s, err := d.word(n, "a relative path beside the recipe", validSource)
	if err != nil {
		return nil, err
	}
	b, err := src.ReadFile(path.Join(dir, s))
	if err != nil {
		return nil, errorf(at, ReasonFile, "cannot read %s: %v", s, plain(err))
	}
	return b, nil
}

func (d *document) cmdline(n *yaml.Node, r *Recipe) error {
	return d.sequence(n, func(v *yaml.Node) error {
		s, err := d.word(v, "one word of a kernel command line", validWord)
		if err != nil {
			return err
		}
		key, _, _ := strings.Cut(s, "=")
		switch {
		case key == "roothash" || key == "init" || key == "rdinit" || key == "root" || strings.HasPrefix(key, "portcullis."):
			return errorf(d.at(v), ReasonReserved, "%s= is written by the builder", key)
		}
		r.Cmdline = append(r.Cmdline, s)
		return nil
	})
}

func (d *document) squash(n *yaml.Node, r *Recipe) error {
	return d.mapping(n, func(key string, at Position, v *yaml.Node) error {
		var err error
		switch key {
		case "level":
			r.Squash.Level, err = d.number(v, 1, 22)
		case "block_size":
			r.Squash.BlockSize, err = d.number(v, 4096, 1<<20)
			if err == nil && r.Squash.BlockSize&(r.Squash.BlockSize-1) != 0 {
				err = errorf(d.at(v), ReasonValue, "block_size must be a power of two")
			}
		default:
			return unknown(at, "squash."+key, "squash.level", "squash.block_size")
		}
		return err
	})
}

// place checks where a recipe may write.
func (d *document) place(n *yaml.Node, ours bool) (string, error) {
	p, err := d.word(n, "a clean absolute path", validPath)
	if err == nil && !ours && (p == Reserved || strings.HasPrefix(p, Reserved+"/")) {
		err = errorf(d.at(n), ReasonReserved, "%s belongs to the builder", Reserved)
	}
	return p, err
}

func (d *document) dirs(n *yaml.Node, ours bool, r *Recipe) error {
	return d.sequence(n, func(item *yaml.Node) error {
		e := Dir{Mode: 0o755, At: d.at(item)}
		err := d.mapping(item, func(key string, at Position, v *yaml.Node) (err error) {
			switch key {
			case "path":
				e.Path, err = d.place(v, ours)
			case "mode":
				e.Mode, err = d.mode(v)
			default:
				err = unknown(at, key, "path", "mode")
			}
			return err
		})
		if err != nil {
			return err
		}
		if e.Path == "" {
			return errorf(e.At, ReasonValue, "a directory needs path")
		}
		r.Dirs = append(r.Dirs, e)
		return nil
	})
}

func (d *document) files(n *yaml.Node, src Source, dir string, ours bool, r *Recipe) error {
	return d.sequence(n, func(item *yaml.Node) error {
		e := File{Mode: 0o644, At: d.at(item)}
		given := 0
		err := d.mapping(item, func(key string, at Position, v *yaml.Node) (err error) {
			switch key {
			case "path":
				e.Path, err = d.place(v, ours)
			case "mode":
				e.Mode, err = d.mode(v)
			case "content":
				given++
				var s string
				s, err = d.text(v)
				e.Content = []byte(s)
			case "source":
				given++
				e.Content, err = d.source(v, at, src, dir)
			default:
				err = unknown(at, key, "path", "mode", "content", "source")
			}
			return err
		})
		if err != nil {
			return err
		}
		if e.Path == "" || given != 1 {
			return errorf(e.At, ReasonValue, "a file needs path and either content or source")
		}
		r.Files = append(r.Files, e)
		return nil
	})
}
