package debroot

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"portcullis/images/deb"
	"portcullis/images/recipe"
)

// own is a built kernel without modules, and the recipe and packages that it is used with.
func own(t *testing.T) (OwnKernel, *Packages, *recipe.Recipe, *Maker) {
	t.Helper()
	dir := t.TempDir()
	for name, text := range map[string]string{
		"vmlinuz": "kernel", "release": "6.12.1-portcullis\n",
		"modules.builtin":         "kernel/drivers/net/virtio_net.ko\nkernel/drivers/md/dm-verity.ko\n",
		"modules.builtin.modinfo": "virtio_net.license=GPL\x00r8169.firmware=rtl_nic/rtl8168.fw\x00tg3.firmware=tigon/tg3.bin\x00",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m, err := NewMaker(t.TempDir(), nil, false)
	if err != nil {
		t.Fatal(err)
	}
	r := &recipe.Recipe{Kernel: recipe.Kernel{Initrd: []string{"virtio_net"}, Root: []string{"dm_verity", "kernel/fs/btrfs/**", "dummy"}, Unlisted: []string{"dummy"}}}
	return OwnKernel{Dir: dir}, &Packages{Kernel: []deb.Package{{Name: "linux-image-x"}}}, r, m
}

func TestUseKernel_HasEverythingInside(t *testing.T) {
	o, p, r, m := own(t)
	k, with, err := m.UseKernel(t.Context(), o, p, r)
	if err != nil {
		t.Fatal(err)
	}
	if k.Release != "6.12.1-portcullis" || len(p.Kernel) != 0 || !slices.Equal(with.Kernel.Root, []string{"dm_verity"}) || len(r.Kernel.Root) != 3 {
		t.Errorf("release %q, packages %v, root modules %q of %q", k.Release, p.Kernel, with.Kernel.Root, r.Kernel.Root)
	}
	if !slices.Equal(k.builtIn, []string{"rtl_nic/rtl8168.fw", "tigon/tg3.bin"}) {
		t.Errorf("firmware %q", k.builtIn)
	}
	files, err := k.InitrdFiles(t.Context(), with)
	if err != nil || len(files) != 1 || len(files[InitrdModules]) != 0 {
		t.Errorf("initrd: %q %v", files, err)
	}
	if paths, err := k.Modules.Choose(with.Kernel.Root); err != nil || len(paths) != 0 {
		t.Errorf("root: %q %v", paths, err)
	}
	with.Kernel.Initrd = append(with.Kernel.Initrd, "igc")
	var e *Error
	if _, err := k.InitrdFiles(t.Context(), with); !errors.As(err, &e) || e.Reason != ReasonMissing {
		t.Errorf("a driver that the kernel has not: %v", err)
	}
}

func TestUseKernel_RefusesHalfABuild(t *testing.T) {
	o, p, r, m := own(t)
	if err := os.Remove(filepath.Join(o.Dir, "modules.builtin")); err != nil {
		t.Fatal(err)
	}
	if _, _, err := m.UseKernel(t.Context(), o, p, r); err == nil {
		t.Error("a kernel without its list of drivers was taken")
	}
}
