package hpc

import (
	"context"
)

// programs sees to it that the PC's programs are there and static, and takes
// their digests.
func (b *builder) programs(ctx context.Context) error {
	want := []struct {
		name         string
		path, digest *string
		needed       bool
	}{
		{"hpc-init", &b.Binaries.Init, &b.digests.Init, true},
		{"hpc-agent", &b.Binaries.Agent, &b.digests.Agent, true},
		{"hpc-lab", &b.Binaries.Lab, &b.digests.Lab, b.lab()},
	}
	for _, w := range want {
		if !w.needed {
			*w.path = ""
			continue
		}
		var err error
		if *w.path, *w.digest, err = b.Program(ctx, arch, w.name, *w.path); err != nil {
			return err
		}
	}
	return nil
}
