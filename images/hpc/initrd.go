package hpc

import (
	"context"
	"fmt"
	"os"

	"portcullis/images/cpio"
	"portcullis/images/debroot"
)

// Files of the initrd beside /init.
const (
	initrdTrust   = "etc/portcullis/trust.json"
	initrdModules = debroot.InitrdModules
)

// initrd returns the compressed archive: hpc-init, the modules it loads with
// the firmware that they ask for, whom it trusts.
func (b *builder) initrd(ctx context.Context, k *debroot.Kernel, trust []byte, epoch int64) ([]byte, error) {
	files, err := k.InitrdFiles(ctx, b.recipe)
	if err != nil {
		return nil, err
	}
	files[initrdTrust] = trust
	program, err := os.ReadFile(b.Binaries.Init)
	if err != nil {
		return nil, err
	}
	archive, err := debroot.Pack(program, files, uint32(epoch))
	if err != nil {
		return nil, fmt.Errorf("initrd: %w", err)
	}
	return cpio.Zstd(archive), nil
}
