package pi

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path"
	"path/filepath"

	"portcullis/images/card"
	"portcullis/images/deb"
	"portcullis/images/debroot"
)

// treeNames are the names under which the firmware looks for a device tree where
// the kernel's differ: the kernel has the compute module's tree with its IO board,
// and another word for the second stepping of the Pi 5's chip.
var treeNames = map[string]string{"bcm2711-rpi-cm4-io.dtb": "bcm2711-rpi-cm4.dtb", "bcm2712-d-rpi-5-b.dtb": "bcm2712d0-rpi-5-b.dtb"}

// firmware adds what the Pi's own firmware reads: its programs, its
// configuration and the device trees, merged with the TPM's overlay.
func (b *builder) firmware(ctx context.Context, k *debroot.Kernel, p *bootPartition) error {
	for _, name := range b.recipe.Boot.Files {
		data, err := os.ReadFile(k.BoardFirmware(name))
		if err != nil {
			return refuse(debroot.ReasonMissing, "the board's firmware package has no %s", name)
		}
		p.files[name] = data
	}
	p.files[card.ConfigFile] = b.recipe.Boot.Config
	dir, err := os.MkdirTemp(b.m.CacheDir, ".tree-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	overlay := ""
	if b.recipe.Kernel.Overlay != nil {
		overlay = filepath.Join(dir, "overlay.dtbo")
		if err := compileOverlay(ctx, b.recipe.Kernel.Overlay, overlay); err != nil {
			return err
		}
	}
	for _, t := range b.recipe.Kernel.DeviceTrees {
		file := k.DeviceTree(t)
		if overlay != "" {
			merged := filepath.Join(dir, path.Base(t))
			if err := merge(ctx, file, overlay, merged); err != nil {
				return err
			}
			file = merged
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name := path.Base(t)
		if n, ok := treeNames[name]; ok {
			name = n
		}
		p.files[name] = data
	}
	return nil
}

// compileOverlay compiles the source of an overlay with its symbols.
func compileOverlay(ctx context.Context, source []byte, to string) error {
	tool, err := deb.NeedTool("dtc", "device-tree-compiler")
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, tool, "-@", "-q", "-I", "dts", "-O", "dtb", "-o", to, "-")
	cmd.Stdin = bytes.NewReader(source)
	return runTool(cmd)
}

// merge applies an overlay to a device tree.
func merge(ctx context.Context, tree, overlay, to string) error {
	tool, err := deb.NeedTool("fdtoverlay", "device-tree-compiler")
	if err != nil {
		return err
	}
	return runTool(exec.CommandContext(ctx, tool, "-i", tree, "-o", to, overlay))
}

func runTool(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, bytes.TrimSpace(out))
	}
	return nil
}
