package probe

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"portcullis/attestserver/protocol"
)

func openFile(link string) (io.ReadCloser, error) {
	return os.OpenFile(link, os.O_RDONLY|nonblock, 0)
}

// odd are programs that the runtime itself starts from files of its own making.
// The gateway knows what must be in them.
func odd(path string) bool {
	return strings.HasPrefix(path, protocol.RuncClone) || strings.HasPrefix(path, protocol.DockerCheck)
}

// origins says of each file behind a container's walls whether it is the
// container's image's, and if not, what is in it; likewise of the runtime's own
// odd programs. Processes that end meanwhile, or execute another program, are read again.
func (l *layers) origins(ctx context.Context, s *scan) (reading time.Duration, err error) {
	err = s.settle(ctx, l.host, func() { reading = l.originsOnce(ctx, s) })
	return reading, err
}

func (l *layers) originsOnce(ctx context.Context, s *scan) (reading time.Duration) {
	images := map[string]string{}
	for _, f := range s.files {
		if f.Container == "" && !odd(f.Path) || f.Image != "" || f.SHA256 != "" {
			continue
		}
		if _, ok := images[f.Container]; !ok && f.Container != "" {
			reading = max(reading, l.refresh(ctx))
			images[f.Container] = l.host.imageOf(f.Container)
		}
		d, err := l.content(ctx, f)
		if err != nil {
			f.gone = !l.host.stillHeld(f)
			continue
		}
		if image := images[f.Container]; image != "" && l.holds(image, d) {
			f.Image = image
		} else {
			f.SHA256 = hex.EncodeToString(d[:])
		}
		f.elsewhere = strings.HasPrefix(f.Path, protocol.DockerCheck) || f.Image != "" || f.Container != "" && reading > 0
	}
	return reading
}

// content is the digest of a file, read through any process that maps it.
func (l *layers) content(ctx context.Context, f *mappedFile) (d [32]byte, err error) {
	k := statKey{f.Dev, f.Inode, f.CTime, f.Size}
	if f.FSType != "overlay" {
		k = statKey{}
	}
	err = errImage
	for _, at := range f.holders {
		link := filepath.Join(l.host.Proc, at.dir, "map_files", fmt.Sprintf("%x-%x", at.address, at.end))
		if d, err = l.digest(ctx, link, k); err == nil || ctx.Err() != nil {
			break
		}
	}
	return d, err
}
