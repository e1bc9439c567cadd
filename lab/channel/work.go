package channel

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// workBlock is what one round of work writes, reads and digests, in bytes.
const workBlock = 1 << 20

// work keeps a processor and a file system busy for a time, as an honest task
// does: it digests, writes a file in dir, reads it again and removes it.
func work(ctx context.Context, out io.Writer, text, dir string) error {
	wait, err := time.ParseDuration(text)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	name := filepath.Join(dir, fmt.Sprintf("work-%d", os.Getpid()))
	defer os.Remove(name)
	block := make([]byte, workBlock)
	rounds := 0
	for ; ctx.Err() == nil; rounds++ {
		for i := 0; i < len(block); i += sha256.Size {
			sum := sha256.Sum256(block[i : i+sha256.Size])
			copy(block[i:], sum[:])
		}
		if err := os.WriteFile(name, block, 0o600); err != nil {
			return err
		}
		back, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !bytes.Equal(back, block) {
			return fmt.Errorf("%s holds something else than was written", name)
		}
	}
	fmt.Fprintln(out, rounds, "rounds")
	return nil
}
